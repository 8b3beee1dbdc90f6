package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/stdio"
)

func itoa(n int) string { return strconv.Itoa(n) }

// crunState asks crun itself.
func crunState(t *testing.T, e *Executor, id string) string {
	t.Helper()
	out, err := exec.Command("crun", "--root="+e.handlers["crun"].root, "state", id).CombinedOutput()
	if err != nil {
		t.Fatalf("crun state: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && k == `"status"` {
			return strings.Trim(v, `",`)
		}
	}
	t.Fatalf("crun state says %s", out)
	return ""
}

// The layout that the start, exec and delete shortcuts rely on. If this fails
// with a new crun, look at docs/containers.md before anything else.
func TestCrunLayout(t *testing.T) {
	e := executor(t)
	if f := e.Handlers()["crun"]; !f.FifoStart || !f.SeccompBPF || !f.ReadOnlyBind || !f.RecursiveReadOnlyMounts {
		t.Errorf("features of crun: %+v", f)
	}
	b := create(t, e, container{})
	dir := e.handlers["crun"].stateDir(b.id)
	if fi, err := os.Lstat(filepath.Join(dir, "exec.fifo")); err != nil || fi.Mode().Type() != os.ModeNamedPipe {
		t.Fatalf("exec.fifo: %v, %v", fi, err)
	}
	st, err := readCrunStatus(dir)
	if err != nil || st.CgroupPath == nil || *st.CgroupPath != "" || st.PID != b.ctr.Init.PID || st.StartTime != b.ctr.Init.StartTime || st.Bundle != b.ctr.Bundle {
		t.Fatalf("status file %+v, %v; init is %+v", st, err, b.ctr.Init)
	}
	if s := crunState(t, e, b.id); s != "created" {
		t.Errorf("crun says %s, want created", s)
	}
	// No call of crun may be needed to start and to delete.
	crun := e.handlers["crun"].path
	e.handlers["crun"].path = "/bin/false"
	b.start()
	e.handlers["crun"].path = crun
	if s := crunState(t, e, b.id); s != "running" {
		t.Errorf("crun says %s, want running", s)
	}
	// Start does not wait for the execve(2) that it has brought about.
	eventually(t, "init executes its command", func() bool {
		exe, err := os.Readlink(filepath.Join("/proc", itoa(b.ctr.Init.PID), "exe"))
		return err == nil && exe == "/bin/busybox"
	})
	e.handlers["crun"].path = "/bin/false"
	if err := e.Delete(context.Background(), b.id, b.ctr); err != nil {
		t.Error(err)
	}
	e.handlers["crun"].path = crun
	out, err := exec.Command("crun", "--root="+e.handlers["crun"].root, "list", "-q").CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("crun list after Delete: %s, %v", out, err)
	}
}

func TestPlainStartAndDelete(t *testing.T) { eachMonitor(t, testPlainStartAndDelete) }

func testPlainStartAndDelete(t *testing.T, e *Executor) {
	mark := filepath.Join(e.runDir, "mark")
	hook := func(word string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo " + word + " >> " + mark}}}
	}
	b := create(t, e, container{change: func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Poststart: hook("started"), Poststop: hook("stopped")}
	}}).start()
	if r, err := b.exec(0, "/bin/true"); err != nil || r.ExitCode != 0 {
		t.Errorf("%+v %v", r, err)
	}
	if err := e.Delete(context.Background(), b.id, b.ctr); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(mark); err != nil || string(got) != "started\nstopped\n" {
		t.Errorf("hooks wrote %q, %v", got, err)
	}
}

func TestStartTwice(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		err := e.Start(context.Background(), b.id, b.ctr)
		var rerr *RuntimeError
		if !errors.As(err, &rerr) || rerr.Message == "" {
			t.Errorf("second start: %v", err)
		}
	})
}

// filter denies the given system calls with EPERM and allows the others.
func filter(numbers ...uint32) string {
	var b bytes.Buffer
	add := func(code uint16, jt, jf uint8, k uint32) {
		_ = binary.Write(&b, binary.NativeEndian, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	}
	const ret = unix.BPF_RET | unix.BPF_K
	add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, 0)
	for _, n := range numbers {
		add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, n)
		add(ret, 0, 0, unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM))
	}
	add(ret, 0, 0, unix.SECCOMP_RET_ALLOW)
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

func withProfile(denied ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: denied, Action: specs.ActErrno}}}
		s.Process.NoNewPrivileges = true
	}
}

// denials says which of mkdir and chmod a container and an exec in it are
// denied.
func denials(t *testing.T, b *box) string {
	t.Helper()
	const script = "mkdir /tmp/d$$ 2>/dev/null && rmdir /tmp/d$$ || echo -n 'mkdir '; chmod 777 /tmp 2>/dev/null || echo -n 'chmod '; echo"
	b.start()
	r, err := b.exec(0, sh(script)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(r.Stdout))
}

func TestSeccompBPF(t *testing.T) { eachMonitor(t, testSeccompBPF) }

func testSeccompBPF(t *testing.T, e *Executor) {
	// The profile and the filter differ, so it shows which one is in force:
	// the profile denies chmod, the filter mkdir.
	deny := filter(unix.SYS_MKDIRAT, unix.SYS_MKDIR)
	if got := denials(t, create(t, e, container{change: withProfile("chmod", "fchmodat"), bpf: deny})); got != "mkdir" {
		t.Errorf("with a compiled filter %q is denied in an exec, want mkdir", got)
	}
	init := create(t, e, container{change: withProfile("chmod", "fchmodat"), bpf: deny,
		args: sh("mkdir /tmp/i 2>/dev/null && exit 1; chmod 777 /tmp || exit 2; exit 0")}).start()
	if x := init.wait(); x.Code != 0 {
		t.Errorf("the filter is not in force in the container: %+v", x)
	}
	if got := denials(t, create(t, e, container{change: withProfile("chmod", "fchmodat")})); got != "chmod" {
		t.Errorf("without a compiled filter %q is denied, want chmod", got)
	}
	if got := denials(t, create(t, e, container{handler: "runc", change: withProfile("chmod", "fchmodat"), bpf: deny})); got != "chmod" {
		t.Errorf("runc does not take filters: %q is denied, want chmod", got)
	}
	// A client's annotation must not replace the profile.
	forged := create(t, e, container{change: func(s *specs.Spec) {
		withProfile("chmod", "fchmodat")(s)
		s.Annotations = map[string]string{bpfAnnotation: deny}
	}})
	if got := denials(t, forged); got != "chmod" {
		t.Errorf("a forged annotation is taken: %q is denied, want chmod", got)
	}
}

// A crun that no longer knows the annotation must not run anything unconfined.
func TestSeccompBPFIgnored(t *testing.T) { eachMonitor(t, testSeccompBPFIgnored) }

func testSeccompBPFIgnored(t *testing.T, e *Executor) {
	script := filepath.Join(e.runDir, "othercrun")
	const text = `#!/bin/sh
for a; do
	case $last in --bundle) sed -i s/run.oci.seccomp_bpf_data/run.oci.unknown/ "$a/config.json";; esac
	last=$a
done
exec crun "$@"
`
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	other, err := New(context.Background(), Options{
		Handlers: map[string]Handler{"crun": {Name: "crun", Path: script}}, RunDir: e.runDir, CgroupManager: "disabled",
		Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(script, unix.MNT_DETACH) })
	deny := filter(unix.SYS_MKDIRAT, unix.SYS_MKDIR)
	if got := denials(t, create(t, other, container{change: withProfile("chmod", "fchmodat"), bpf: deny})); got != "chmod" {
		t.Errorf("%q is denied, want the profile's chmod", got)
	}
	if other.Handlers()["crun"].SeccompBPF {
		t.Error("the shortcut is still believed in")
	}
}

func TestRuntimeMessage(t *testing.T) {
	for in, want := range map[string]string{
		`{"msg":"w","level":"warning","time":"x"}` + "\n" + `{"msg":"bad: no such file","level":"error","time":"x"}`: "bad: no such file",
		"panic: oh\n": "panic: oh",
		`{"level":"error","msg":"twice"}` + "\n" + `{"level":"error","msg":"twice"}` + "\n": "twice",
		`{"level":"error","msg":"cut of`: `{"level":"error","msg":"cut of`,
		"":                               "",
	} {
		if got := runtimeMessage(in); got != want {
			t.Errorf("runtimeMessage(%q) = %q, want %q", in, got, want)
		}
	}
}

// What a runtime says of a limit is that limit's error.
func TestRuntimeErrorIs(t *testing.T) {
	limits := []error{unix.EAGAIN, unix.ENOMEM, unix.ENOSPC, unix.EMFILE}
	for message, want := range map[string]error{
		"fork: Resource temporarily unavailable":                                           unix.EAGAIN,
		"unable to start unit: fork/exec /proc/self/exe: resource temporarily unavailable": unix.EAGAIN,
		"clone: Cannot allocate memory":                                                    unix.ENOMEM,
		"mkdir `/x`: No space left on device":                                              unix.ENOSPC,
		"open `/x`: Too many open files":                                                   unix.EMFILE,
		"open `/x`: No such file or directory":                                             nil,
	} {
		err := fmt.Errorf("create: %w", &RuntimeError{Message: message})
		for _, limit := range limits {
			if got := errors.Is(err, limit); got != (limit == want) {
				t.Errorf("%q is %q: %v", message, limit, got)
			}
		}
	}
}

func TestConmonArgs(t *testing.T) {
	rt := &runtime{path: "/usr/bin/crun", global: []string{"--root=/run/u/oci/crun", "--log-format=json", "--cgroup-manager=disabled"}}
	s := BeginSpec{ID: "c1", Bundle: "/run/u/containers/c1", LogPath: "/var/log/pods/p/0.log", Terminal: true, Stdin: true}
	const want = `--api-version 1 --cid c1 --cuuid c1 --bundle /run/u/containers/c1 --full-attach
--conmon-pidfile /run/u/containers/c1/conmon.pid --container-pidfile /run/u/containers/c1/init.pid
--exit-dir /run/u/exits --log-path k8s-file:/run/u/containers/c1/log --no-sync-log --no-new-keyring --runtime /usr/bin/crun
--runtime-arg=--root=/run/u/oci/crun --runtime-arg=--log-format=json --runtime-arg=--cgroup-manager=disabled
--terminal --stdin --leave-stdin-open`
	if got := strings.Join(conmonArgs(rt.argv(), s, "/run/u/exits"), " "); got != strings.ReplaceAll(want, "\n", " ") {
		t.Errorf("conmon's arguments are\n%s\nwant\n%s", got, want)
	}
}

// No file of ours, of conmon or of the runtime may be open in a container.
func TestNoFilesLeakIn(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		eventually(t, "init has 3 open files", func() bool { // once it executes its command
			fds, err := os.ReadDir(filepath.Join("/proc", itoa(b.ctr.Init.PID), "fd"))
			return err == nil && len(fds) == 3
		})
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan error, 1)
		go func() {
			_, err := e.Exec(ctx, b.id, b.ctr, b.process("/bin/sleep", "100"), stdio.Streams{Stdout: io.Discard, Stderr: io.Discard})
			done <- err
		}()
		eventually(t, "the exec runs with 3 open files", func() bool {
			members, _ := b.ctr.members()
			for _, m := range members {
				exe, _ := os.Readlink(filepath.Join("/proc", itoa(m.PID), "exe"))
				fds, _ := os.ReadDir(filepath.Join("/proc", itoa(m.PID), "fd"))
				if m != b.ctr.Init && exe == "/bin/busybox" && len(fds) == 3 {
					return true
				}
			}
			return false
		})
		cancel()
		<-done
	})
}

func TestUpdateWithoutCgroup(t *testing.T) { eachMonitor(t, testUpdateWithoutCgroup) }

func testUpdateWithoutCgroup(t *testing.T, e *Executor) {
	b := create(t, e, container{}).start()
	if err := e.Update(context.Background(), b.id, b.ctr, &specs.LinuxResources{}); !errors.Is(err, ErrNoCgroup) {
		t.Errorf("update: %v, want ErrNoCgroup", err)
	}
}

// conmon ignores SIGPIPE; a container's command must not inherit that.
func TestSIGPIPEIsNotIgnored(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		const show = `while read k v; do case $k in SigIgn:|SigBlk:) echo $k $v;; esac; done < /proc/self/status`
		r, err := b.exec(0, sh(show)...)
		if err != nil {
			t.Fatal(err)
		}
		status, err := os.ReadFile(filepath.Join("/proc", itoa(b.ctr.Init.PID), "status"))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range append(strings.Split(string(status), "\n"), strings.Split(string(r.Stdout), "\n")...) {
			k, v, _ := strings.Cut(line, ":")
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if (k == "SigIgn" || k == "SigBlk") && (err != nil || mask&(1<<(unix.SIGPIPE-1)) != 0) {
				t.Errorf("%s", line)
			}
		}
	})
}

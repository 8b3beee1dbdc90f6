package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
)

// Handler is one configured OCI runtime.
type Handler struct {
	Name string
	Path string   // absolute, or looked up in PATH; "" = Name
	Args []string // further global arguments of the runtime
}

// Features describes a runtime handler and which shortcuts are taken with
// it. A shortcut that a runtime turns out not to know is given up for good.
type Features struct {
	Path    string
	Version string // as the runtime prints it, e.g. "crun version 1.8.1"
	// FifoStart: a container is started by writing to its exec.fifo.
	FifoStart bool
	// SeccompBPF: CreateSpec.SeccompBPF is handed over as an annotation.
	SeccompBPF bool
	// ReadOnlyBind: the binary lies on a read-only mount, so that it does not
	// copy itself at every call.
	ReadOnlyBind bool
	// OwnCgroupView: the runtime is called in a mount namespace of its own
	// where the tmpfs over /sys/fs/cgroup is taken away.
	OwnCgroupView bool
	// RecursiveReadOnlyMounts: the mount option "rro" is known.
	RecursiveReadOnlyMounts bool
	// IDMappedMounts: the ID mappings of a mount are known.
	IDMappedMounts bool
}

// runtime is a Handler with what was found out about it.
type runtime struct {
	name    string
	path    string
	root    string   // --root: one state directory per container
	prefix  []string // command that calls the runtime, see ownCgroupView
	global  []string // global arguments
	crun    bool     // the crun-only shortcuts may be taken
	bpf     atomic.Bool
	timeout time.Duration // bounds each call, see runtimeTimeout
	feat    Features
}

// runtimeTimeout bounds each call of a runtime but an exec, of which it bounds the
// time until the command runs: also a kubelet waits for no longer. A volume or a
// hook can make a runtime hang for ever.
const runtimeTimeout = 2 * time.Minute

// bound returns a context that ends a call of the runtime in time.
func (rt *runtime) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, rt.timeout, ErrRuntimeHangs)
}

func (rt *runtime) features() Features {
	f := rt.feat
	f.SeccompBPF = rt.bpf.Load()
	return f
}

func (rt *runtime) stateDir(id string) string { return filepath.Join(rt.root, id) }

// argv is the command line of a runtime call.
func (rt *runtime) argv(args ...string) []string {
	return slices.Concat(rt.prefix, []string{rt.path}, rt.global, args)
}

func (rt *runtime) command(args ...string) *exec.Cmd {
	argv := rt.argv(args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = runtimeEnv("")
	return cmd
}

// call runs the runtime to its end, or kills it with its children when ctx is done
// or the call takes too long. A failure is a *RuntimeError.
func (rt *runtime) call(ctx context.Context, op string, args ...string) error {
	ctx, cancel := rt.bound(ctx)
	defer cancel()
	argv := rt.argv(append([]string{op}, args...)...)
	if rt.crun {
		// crun writes the state to a hook's stdin and dies of SIGPIPE if the hook
		// ends without reading it. What is ignored stays so across execve(2).
		argv = append([]string{"/bin/sh", "-c", `trap "" PIPE; exec "$@"`, "crun"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = runtimeEnv("")
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		id, err := proc.Identify(cmd.Process.Pid)
		if err == nil {
			killTree(id)
		}
		return err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s %s: %w", rt.name, op, context.Cause(ctx))
	case errors.As(err, &exit):
		message := runtimeMessage(out.String())
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			message = strings.TrimSpace(message + " (ended by signal: " + ws.Signal().String() + ")")
		}
		return &RuntimeError{Op: op, Handler: rt.name, Message: message, ExitCode: exit.ExitCode()}
	}
	return fmt.Errorf("run %s %s: %w", rt.path, op, err)
}

// runtimeEnv is the whole environment of conmon and the runtimes. The C locale
// keeps their messages in the language that ErrCommandNotFound matches.
func runtimeEnv(tmp string) []string {
	env := []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	for _, k := range []string{"HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"} {
		if v := os.Getenv(k); v != "" {
			env = append(env, k+"="+v)
		}
	}
	if tmp != "" {
		env = append(env, "TMPDIR="+tmp)
	}
	return env
}

func newRuntime(ctx context.Context, name string, h Handler, o Options) (*runtime, error) {
	if h.Path == "" {
		h.Path = h.Name
	}
	path, err := lookPath(h.Path)
	if err != nil {
		return nil, fmt.Errorf("runtime handler %q: %w (install it or set its path)", name, err)
	}
	rt := &runtime{name: name, path: path, root: filepath.Join(o.RunDir, "oci", name), timeout: runtimeTimeout}
	if err := os.MkdirAll(rt.root, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := rt.bound(ctx)
	defer cancel()
	version, err := printed(ctx, path, "--version")
	if err != nil {
		return nil, fmt.Errorf("runtime handler %q: %s --version: %w", name, path, err)
	}
	line, _, _ := strings.Cut(string(version), "\n")
	rt.crun = strings.HasPrefix(line, "crun version ")
	rt.bpf.Store(rt.crun)
	rt.feat = Features{Path: path, Version: line, FifoStart: rt.crun}
	rt.feat.RecursiveReadOnlyMounts, rt.feat.IDMappedMounts = mountFeatures(ctx, path, line)

	rt.global = []string{"--root=" + rt.root, "--log-format=json"}
	switch {
	case rt.crun:
		rt.global = append(rt.global, "--cgroup-manager="+o.CgroupManager)
	case o.CgroupManager == "systemd":
		rt.global = append(rt.global, "--systemd-cgroup")
	}
	rt.global = append(rt.global, h.Args...)

	if rt.crun {
		if err := bindReadOnly(path); err != nil {
			o.Log.Warn("crun copies itself at every call: cannot bind it read-only over itself", "path", path, "error", err)
		} else {
			rt.feat.ReadOnlyBind = true
		}
	} else if rt.prefix, err = ownCgroupView(); err != nil {
		return nil, fmt.Errorf("runtime handler %q: %w", name, err)
	}
	rt.feat.OwnCgroupView = rt.prefix != nil
	return rt, nil
}

// printed returns what a runtime prints. When ctx ends it does not wait for what the runtime
// has started, which may be a script.
func printed(ctx context.Context, path, arg string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, arg)
	cmd.WaitDelay = time.Second
	return cmd.Output()
}

var crunVersion = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^crun version (\d+)\.(\d+)`)
})

// mountFeatures asks "features" (runc 1.1, crun 1.9) for the mount option rro and
// for ID-mapped mounts. An older crun has the former since 1.4, the latter in 1.8
// at the latest.
func mountFeatures(ctx context.Context, path, version string) (rro, idmap bool) {
	var f struct {
		MountOptions []string
		Linux        struct {
			MountExtensions struct{ IDMap struct{ Enabled bool } }
		}
	}
	if out, err := printed(ctx, path, "features"); err == nil && json.Unmarshal(out, &f) == nil {
		return slices.Contains(f.MountOptions, "rro"), f.Linux.MountExtensions.IDMap.Enabled
	}
	m := crunVersion().FindStringSubmatch(version)
	if m == nil {
		return false, false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > 1 || major == 1 && minor >= 4, major > 1 || major == 1 && minor >= 8
}

// bindReadOnly binds a file over itself, read-only, in this mount namespace. It
// does nothing when the file already is on a read-only mount.
func bindReadOnly(path string) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", path, err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return nil
	}
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	// Flags that the mount came with are locked in a user namespace and must
	// be named again (mount_namespaces(7)).
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY)
	for st_, ms := range map[int64]uintptr{unix.ST_NOSUID: unix.MS_NOSUID, unix.ST_NODEV: unix.MS_NODEV, unix.ST_NOEXEC: unix.MS_NOEXEC} {
		if int64(st.Flags)&st_ != 0 {
			flags |= ms
		}
	}
	if err := unix.Mount("", path, "", flags, ""); err != nil {
		return errors.Join(fmt.Errorf("remount %s read-only: %w", path, err), unix.Unmount(path, unix.MNT_DETACH))
	}
	return nil
}

// ownCgroupView returns the command that calls runc where a hybrid cgroup tree
// is hidden behind a tmpfs, nil where nothing is hidden. crun needs the tmpfs
// and runc cannot bear it, so runc gets a mount namespace of its own for each
// call and takes the tmpfs away there. Only what is below /sys is made private:
// the other mounts go on propagating to and from the node's mount namespace.
func ownCgroupView() ([]string, error) {
	const dir = "/sys/fs/cgroup"
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != dir, false })
	if err != nil {
		return nil, fmt.Errorf("read mounts of %s: %w", dir, err)
	}
	if len(mounts) < 2 || mounts[len(mounts)-1].FSType != "tmpfs" {
		return nil, nil
	}
	unshare, err := lookPath("unshare")
	if err != nil {
		return nil, fmt.Errorf("%s is hidden behind a tmpfs, which only crun can bear, and util-linux' unshare is missing: %w", dir, err)
	}
	script := "{ mount --make-rprivate /sys 2>/dev/null || mount --make-rprivate /; } && umount " + dir + ` && exec "$@"`
	return []string{unshare, "--mount", "--propagation=unchanged", "--", "/bin/sh", "-c", script, "runtime"}, nil
}

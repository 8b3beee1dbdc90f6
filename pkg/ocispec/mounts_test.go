package ocispec

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMounts checks binds in a running container: order, access, options, links.
func TestMounts(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	src := tempDir(t)
	for _, d := range []string{"outer/inner", "inner2", "sub/mnt"} {
		must(t, os.MkdirAll(filepath.Join(src, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(src, "inner2/here"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(src, "file"), []byte("content\n"), 0o644))
	must(t, os.Symlink(filepath.Join(src, "inner2"), filepath.Join(src, "link")))
	must(t, unix.Mount("tmpfs", filepath.Join(src, "sub/mnt"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""))
	defer unix.Unmount(filepath.Join(src, "sub/mnt"), unix.MNT_DETACH)

	in := testInput(t, `ls /vol/inner; cat /etc/file; ls /link; cat /proc/mounts
		t() { touch $1 2>/dev/null && echo $1 written; }; t /ro/x; t /ro/mnt/x; t /rro/x; t /rro/mnt/x; t /vol/x; t /locked/x; t /etc/file; true`)
	bind := func(dst, host string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: dst, HostPath: filepath.Join(src, host)}
	}
	in.Mounts = []*runtimeapi.Mount{
		bind("/vol/inner", "inner2"), // before its parent
		bind("/vol", "outer"),
		bind("/link", "link"),
		{ContainerPath: "/etc/file", HostPath: filepath.Join(src, "file"), Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/ro", HostPath: filepath.Join(src, "sub"), Readonly: true},
		{ContainerPath: "/rro", HostPath: filepath.Join(src, "sub"), Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/opts", HostPath: filepath.Join(src, "outer"), MountOptions: []string{"noexec", "nodev", "nosuid"}},
		{ContainerPath: "/locked", HostPath: filepath.Join(src, "sub/mnt")},
	}
	in.Files.Hosts = filepath.Join(src, "file")
	in.Files.Shm = filepath.Join(src, "sub/mnt")
	text, _ := runContainer(t, in)
	wantAll(t, text, "here\n", "content\n", "/ro/mnt/x written", "/vol/x written", "/locked/x written", " /etc/hosts ", " /dev/shm ")
	wantNone(t, text, "/ro/x written", "/rro/x written", "/rro/mnt/x written", "/etc/file written")
	for line := range strings.Lines(text) {
		if strings.Contains(line, " /opts ") {
			wantAll(t, line, "noexec", "nodev", "nosuid")
		}
	}
}

// TestPropagation mounts on the host and in the container while it runs.
func TestPropagation(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	// A file that appears in the shared directory steps the script.
	script := `mount -t tmpfs tmpfs /vol/in && touch /vol/in/from-container; touch /step/ready
		until [ -e /step/go ]; do sleep 0.05; done; ls /vol/out`
	for _, c := range []struct {
		name      string
		mode      runtimeapi.MountPropagation
		out, back bool
	}{
		{"private", runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{"host to container", runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{"bidirectional", runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			vol, step := tempDir(t), tempDir(t)
			for _, d := range []string{"in", "out"} {
				must(t, os.Mkdir(filepath.Join(vol, d), 0o755))
			}
			defer unix.Unmount(filepath.Join(vol, "in"), unix.MNT_DETACH)
			in := testInput(t, script)
			// As in the node, the root file system is a mount of its own: OCI runtimes
			// make the mount that holds it private.
			must(t, unix.Mount(in.Rootfs, in.Rootfs, "", unix.MS_BIND, ""))
			defer unix.Unmount(in.Rootfs, unix.MNT_DETACH)
			in.secctx().Privileged = true
			in.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/vol", HostPath: vol, Propagation: c.mode}, {ContainerPath: "/step", HostPath: step},
			}
			out, err := Build(in)
			must(t, err)
			cmd := runtimeCommand(t, "crun", out, true, "run", "test")
			stdout, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			waitFile(t, filepath.Join(step, "ready"))
			must(t, unix.Mount("tmpfs", filepath.Join(vol, "out"), "tmpfs", 0, ""))
			defer unix.Unmount(filepath.Join(vol, "out"), unix.MNT_DETACH)
			must(t, os.WriteFile(filepath.Join(vol, "out/from-host"), nil, 0o644))
			_, err = os.Stat(filepath.Join(vol, "in/from-container"))
			if (err == nil) != c.back {
				t.Errorf("mount of the container is seen on the host: %t, want %t", err == nil, c.back)
			}
			must(t, os.WriteFile(filepath.Join(step, "go"), nil, 0o644))
			scanner := bufio.NewScanner(stdout)
			seen := false
			for scanner.Scan() {
				seen = seen || scanner.Text() == "from-host"
			}
			must(t, cmd.Wait())
			if seen != c.out {
				t.Errorf("mount of the host is seen in the container: %t, want %t", seen, c.out)
			}
		})
	}
	t.Run("refused on a private mount", func(t *testing.T) {
		vol := tempDir(t)
		must(t, unix.Mount("tmpfs", vol, "tmpfs", 0, ""))
		defer unix.Unmount(vol, unix.MNT_DETACH)
		must(t, unix.Mount("", vol, "", unix.MS_PRIVATE, ""))
		in := testInput(t, "true")
		in.Mounts = []*runtimeapi.Mount{{ContainerPath: "/vol", HostPath: vol, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		wantInvalid(t, in, "not shared")
	})
}

// TestDevices binds device nodes to other names, and whole directories of them.
func TestDevices(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	in := testInput(t, "ls -l /dev/myfuse /dev/dir/tun; dd if=/dev/zero2 bs=4 count=1 2>/dev/null | grep -c .; echo done")
	in.Container.Devices = []*runtimeapi.Device{
		{HostPath: "/dev/fuse", ContainerPath: "/dev/myfuse", Permissions: "rwm"},
		{HostPath: "/dev/net", ContainerPath: "/dev/dir", Permissions: "r"},
		{HostPath: "/dev/zero", ContainerPath: "/dev/zero2"},
	}
	text, out := runContainer(t, in)
	wantAll(t, text, "10, 229", "10, 200", "done")
	if len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "cannot be enforced") {
		t.Errorf("warnings %q", out.Warnings)
	}
	in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/nothing-here"}}
	wantInvalid(t, in, "does not exist")
	in.Container.Devices = []*runtimeapi.Device{{HostPath: "/etc/passwd"}}
	wantInvalid(t, in, "not a device")
}

// TestCDI injects a device by a CDI specification.
func TestCDI(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := tempDir(t)
	must(t, os.WriteFile(filepath.Join(dir, "vendor.json"), []byte(`{"cdiVersion":"0.5.0","kind":"vendor.example/thing","devices":[
		{"name":"one","containerEdits":{"env":["THING=one"],"deviceNodes":[{"path":"/dev/thing","hostPath":"/dev/fuse"}],
		"mounts":[{"hostPath":"`+dir+`","containerPath":"/thing","options":["ro","bind"]}]}}]}`), 0o644))
	in := testInput(t, "ls -l /dev/thing; env; ls /thing")
	in.Container.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/thing=one"}}
	in.CDISpecDirs = []string{dir}
	text, _ := runContainer(t, in)
	wantAll(t, text, "10, 229", "THING=one", "vendor.json")
	in.Container.Annotations = map[string]string{"cdi.k8s.io/plugin_1": "vendor.example/thing=one"}
	in.Container.CDIDevices = nil
	text, _ = runContainer(t, in)
	wantAll(t, text, "10, 229", "THING=one", "vendor.json")
	in.Container.Annotations["cdi.k8s.io/plugin_1"] = "one"
	wantInvalid(t, in, `CDI device name "one"`)
	in.Container.Annotations = nil
	in.Container.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/thing=two"}}
	wantInvalid(t, in, "vendor.example/thing=two")
	in.CDISpecDirs = nil
	wantInvalid(t, in, "CDI")
}

// TestPodUserNamespace joins a nested user namespace with a sub-range of IDs.
func TestPodUserNamespace(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 20000, Size: 3000}}
	holder := exec.Command("/bin/sleep", "60")
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true, Pdeathsig: syscall.SIGKILL,
	}
	must(t, holder.Start())
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	ns := func(name string) string { return fmt.Sprintf("/proc/%d/ns/%s", holder.Process.Pid, name) }

	in := testInput(t, "cat /proc/self/uid_map /proc/self/gid_map; cat /proc/self/status; ls /sys/class/net; grep ' /sys ' /proc/mounts; readlink /proc/self/ns/net")
	in.Namespaces = Namespaces{Net: ns("net"), IPC: ns("ipc"), UTS: ns("uts"), User: ns("user")}
	ids := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 20000, Length: 3000}}
	in.Pod.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Uids: ids, Gids: ids}},
	}}
	in.secctx().RunAsUser = id(2999)
	in.secctx().Seccomp = &runtimeapi.SecurityProfile{}
	link, err := os.Readlink(in.Namespaces.Net)
	must(t, err)
	text, _ := runContainer(t, in)
	if strings.Count(strings.Join(strings.Fields(text), " "), "0 20000 3000") != 2 {
		t.Errorf("ID maps:\n%s", text)
	}
	wantAll(t, text, link, " /sys sysfs ro,", "Uid:\t2999")

	in.secctx().RunAsUser = id(3000)
	wantInvalid(t, in, "outside of the user namespace")
	in.secctx().RunAsUser = nil

	// A file system that was mounted in our own user namespace can be mapped, by the OCI
	// runtime where the mappings are not the pod's (container.Builder makes those).
	vol := tempDir(t)
	must(t, unix.Mount("tmpfs", vol, "tmpfs", 0, ""))
	defer unix.Unmount(vol, unix.MNT_DETACH)
	must(t, os.WriteFile(filepath.Join(vol, "f"), nil, 0o644))
	two := []*runtimeapi.IDMapping{{HostId: 20000, Length: 1}, {ContainerId: 1, HostId: 20001, Length: 2999}}
	in.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: vol, UidMappings: two, GidMappings: two}}
	in.Container.Command = []string{"/bin/stat", "-c", "%u:%g", "/data/f"}
	if text, _ := runContainer(t, in); strings.TrimSpace(text) != "0:0" {
		t.Errorf("owner in the ID-mapped mount is %q, want 0:0", text)
	}
}

func waitFile(t *testing.T, path string) {
	t.Helper()
	for range 1000 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 10_000_000}, nil)
	}
	t.Fatalf("%s does not appear", path)
}

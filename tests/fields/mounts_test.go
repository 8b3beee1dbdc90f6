package fields

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	private       = runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	fromHost      = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	bidirectional = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
)

// mountLine returns the line of a mount point in the container's mountinfo.
func (c *container) mountLine(point string) string {
	c.Helper()
	found := ""
	for line := range strings.Lines(c.exec("cat", "/proc/self/mountinfo")) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == point {
			found = line
		}
	}
	if found == "" {
		c.Errorf("nothing is mounted on %s", point)
	}
	return found
}

func TestMounts(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("mounts", nil)
		dir := hostDir(e, e.n.Dir, "mounts")
		e.must(os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644))
		e.must(os.MkdirAll(filepath.Join(dir, "real"), 0o755))
		e.must(os.WriteFile(filepath.Join(dir, "real", "deep"), []byte("deep"), 0o644))
		e.must(os.Symlink("real", filepath.Join(dir, "link")))
		c := p.start("c", idle(), mounts(
			&runtimeapi.Mount{ContainerPath: "/rw", HostPath: dir},
			&runtimeapi.Mount{ContainerPath: "/ro", HostPath: dir, Readonly: true},
			&runtimeapi.Mount{ContainerPath: "/one", HostPath: filepath.Join(dir, "file"), Readonly: true},
			&runtimeapi.Mount{ContainerPath: "/linked", HostPath: filepath.Join(dir, "link")},
			&runtimeapi.Mount{ContainerPath: "/rw/below", HostPath: filepath.Join(dir, "real")},
			&runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: filepath.Join(dir, "file")},
			&runtimeapi.Mount{ContainerPath: "/options", HostPath: dir, MountOptions: []string{"noexec", "nosuid", "nodev"}},
		))
		c.sh("echo new >/rw/new")
		data, err := os.ReadFile(filepath.Join(dir, "new"))
		e.must(err)
		e.equal("what the container wrote", strings.TrimSpace(string(data)), "new")
		c.fails("echo >/ro/new", "ead-only file system")
		c.fails("echo >/one", "ead-only file system")
		e.equal("a single file", c.exec("cat", "/one"), "content")
		e.equal("a link of the host's", c.exec("cat", "/linked/deep"), "deep")
		e.equal("a mount below another", c.exec("cat", "/rw/below/deep"), "deep")
		e.equal("a mount over the pod's file", c.exec("cat", "/etc/hosts"), "content")
		options := strings.Split(strings.Fields(c.mountLine("/options"))[5], ",")
		e.contains("mount_options", strings.Join(options, " "), "noexec", "nosuid", "nodev")
		c.fails("cp /bin/busybox /options/true && /options/true", "ermission denied")
		for _, m := range c.status().Mounts {
			if m.ContainerPath == "/linked" && m.HostPath != filepath.Join(dir, "link") {
				e.Errorf("the status names another host path than the request: %s", m.HostPath)
			}
		}
		for what, m := range map[string]*runtimeapi.Mount{
			"relative container path": {ContainerPath: "x", HostPath: dir},
			"over the root":           {ContainerPath: "/x/..", HostPath: dir},
			"unknown option":          {ContainerPath: "/x", HostPath: dir, MountOptions: []string{"remount"}},
			"host path and image":     {ContainerPath: "/x", HostPath: dir, Image: &runtimeapi.ImageSpec{Image: busybox}, Readonly: true},
		} {
			_, err := p.tryCreate("refused", idle(), mounts(m))
			e.refused(what, err, codes.InvalidArgument)
		}
		// What the host has set is locked in a user namespace; on a mount of the
		// node's own it can be changed.
		_, err = p.tryCreate("refused", idle(), mounts(&runtimeapi.Mount{ContainerPath: "/x", HostPath: dir, MountOptions: []string{"noatime"}}))
		e.refused("access-time mode of the host's mount", err, codes.InvalidArgument, "noatime", "locked")
		tmpfs := hostDir(e, e.n.DataDir, "atime")
		e.n.Enter("mount", "-t", "tmpfs", "-o", "size=1m", "x", tmpfs)
		defer e.n.Enter("umount", tmpfs)
		c = p.start("noatime", idle(), mounts(&runtimeapi.Mount{ContainerPath: "/x", HostPath: tmpfs, MountOptions: []string{"noatime", "noexec"}}))
		e.contains("options on a mount of the node's", c.mountLine("/x"), "noatime", "noexec")
		_, err = p.tryCreate("refused", idle(), mounts(&runtimeapi.Mount{ContainerPath: "/x", HostPath: dir + "/missing"}))
		e.refused("missing host path", err, codes.FailedPrecondition, dir+"/missing")
		c = p.start("made", idle(), mounts(&runtimeapi.Mount{ContainerPath: "/x", HostPath: dir + "/made/deep"}), func(c *ctrConfig) {
			c.Labels = map[string]string{"io.kubernetes.pod.uid": "u"} // a kubelet's
		})
		c.sh("touch /x/here")
		_, err = os.Stat(dir + "/made/deep/here")
		e.must(err)
	})
}

func TestMountPropagation(t *testing.T) {
	start(t, nil, func(e env) {
		dir := hostDir(e, e.n.DataDir, "propagation")
		for _, sub := range []string{"early", "late", "back"} {
			e.must(os.MkdirAll(filepath.Join(dir, sub), 0o755))
		}
		tmpfs := func(sub string) { e.n.Enter("mount", "-t", "tmpfs", "-o", "size=1m", "x", filepath.Join(dir, sub)) }
		tmpfs("early")
		defer e.n.Enter("sh", "-c", `for d in early late back; do umount "$0/$d" 2>/dev/null; done; true`, dir)
		p := e.pod("propagation", func(c *podConfig) { c.Linux.SecurityContext.Privileged = true })
		with := func(name string, m *runtimeapi.Mount) *container {
			m.ContainerPath, m.HostPath = "/d", dir
			return p.start(name, idle(), mounts(m), secure(func(s *security) { s.Privileged = m.Propagation == bidirectional }))
		}
		alone := with("private", &runtimeapi.Mount{Propagation: private})
		slave := with("slave", &runtimeapi.Mount{Propagation: fromHost})
		shared := with("shared", &runtimeapi.Mount{Propagation: bidirectional})
		readOnly := with("readonly", &runtimeapi.Mount{Readonly: true})
		recursive := with("recursive", &runtimeapi.Mount{Readonly: true, RecursiveReadOnly: true})

		tmpfs("late")
		seen := func(c *container) bool { return strings.Contains(c.exec("cat", "/proc/self/mountinfo"), " /d/late ") }
		e.equal("a later mount of the host: private", seen(alone), false)
		e.equal("a later mount of the host: host to container", seen(slave), true)
		e.equal("a later mount of the host: bidirectional", seen(shared), true)
		shared.sh("mount -t tmpfs -o size=1m y /d/back")
		e.contains("a mount of the container, in the node", e.n.Enter("cat", "/proc/self/mountinfo"), dir+"/back ")

		e.contains("earlier mount", alone.exec("cat", "/proc/self/mountinfo"), " /d/early ")
		readOnly.fails("touch /d/x", "ead-only file system")
		readOnly.sh("touch /d/early/x") // readonly is not recursive
		recursive.fails("touch /d/x", "ead-only file system")
		recursive.fails("touch /d/early/x", "ead-only file system")

		for what, m := range map[string]*runtimeapi.Mount{
			"recursive without readonly":     {ContainerPath: "/d", HostPath: dir, RecursiveReadOnly: true},
			"recursive with propagation":     {ContainerPath: "/d", HostPath: dir, Readonly: true, RecursiveReadOnly: true, Propagation: fromHost},
			"propagation that is not a mode": {ContainerPath: "/d", HostPath: dir, Propagation: 7},
		} {
			_, err := p.tryCreate("refused", idle(), mounts(m))
			e.refused(what, err, codes.InvalidArgument)
		}
	})
}

// TestMountIDMappings: the kernel maps only what was mounted inside of the node's
// user namespace; everything else is refused, in words.
func TestMountIDMappings(t *testing.T) {
	start(t, nil, func(e env) {
		dir := hostDir(e, e.n.Dir, "mapped")
		m := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
		mount := func(path string) change {
			return mounts(&runtimeapi.Mount{ContainerPath: "/d", HostPath: path, UidMappings: m, GidMappings: m})
		}
		plain := e.pod("plain", nil)
		_, err := plain.tryCreate("c", idle(), mount(dir))
		e.refused("ID mappings in a pod without a user namespace", err, codes.InvalidArgument, "user namespace")
		if e.rangeSize() < 2*65536 {
			return // TestUserNamespaces shows that pods have no user namespace then
		}
		p := e.pod("nested", userns(65536))
		_, err = p.tryCreate("c", idle(), mount(dir))
		e.refused("ID mappings of the host's file system", err, codes.InvalidArgument, "ID-mapped")
		tmpfs := hostDir(e, e.n.DataDir, "mapped-tmpfs")
		e.n.Enter("mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "x", tmpfs)
		defer e.n.Enter("umount", tmpfs)
		e.n.Enter("sh", "-c", `echo hello >"$0/file"`, tmpfs)
		c := p.start("tmpfs", idle(), mount(tmpfs))
		e.equal("owner inside", c.exec("stat", "-c", "%u:%g", "/d/file"), "0:0")
		c.sh("echo more >/d/new")
		e.equal("owner in the node", strings.TrimSpace(e.n.Enter("stat", "-c", "%u:%g", tmpfs+"/new")), "0:0")
		_, err = p.tryCreate("half", idle(), mounts(&runtimeapi.Mount{ContainerPath: "/d", HostPath: tmpfs, UidMappings: m}))
		e.refused("ID mappings of users alone", err, codes.InvalidArgument, "must come together")
		// Containers that join a PID namespace, too: crun of Debian 12 then looks for the
		// user namespace of a process that may not have joined it yet.
		shared := e.pod("shared", func(c *podConfig) {
			userns(65536)(c)
			podNamespaces(c).Pid = nsPod
		})
		for i := range 12 {
			c := shared.start(fmt.Sprint("shared", i), idle(), mount(tmpfs))
			e.equal("owner inside, with a shared PID namespace", c.exec("stat", "-c", "%u:%g", "/d/file"), "0:0")
		}
	})
}

func TestImageVolumes(t *testing.T) {
	start(t, []string{grouped}, func(e env) {
		p := e.pod("volumes", nil)
		volume := func(m *runtimeapi.Mount) change {
			m.ContainerPath, m.Image, m.Readonly = "/image", &runtimeapi.ImageSpec{Image: grouped}, true
			return mounts(m)
		}
		c := p.start("whole", idle(), volume(&runtimeapi.Mount{}))
		e.contains("a file of the image", c.exec("cat", "/image/etc/passwd"), "default-user")
		c.fails("touch /image/x", "ead-only file system")
		c.sh("/image/bin/true")
		c = p.start("sub", idle(), volume(&runtimeapi.Mount{ImageSubPath: "etc", MountOptions: []string{"noexec"}}))
		e.contains("a file of the sub path", c.exec("cat", "/image/passwd"), "default-user")
		e.contains("options", c.mountLine("/image"), "noexec")
		two := p.start("two", idle(), volume(&runtimeapi.Mount{}), mounts(&runtimeapi.Mount{
			ContainerPath: "/other", Image: &runtimeapi.ImageSpec{Image: busybox}, ImageSubPath: "bin", Readonly: true,
		}))
		two.sh("test -e /image/etc/group && test -e /other/busybox")
		for _, m := range two.status().Mounts {
			image, err := e.cri.ImageStatus(e.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: m.GetImage().GetImage()}})
			if err != nil || m.Image.ImageRef != image.Image.GetId() {
				e.Errorf("status of the volume on %s: image %v; want the ID %s, %v", m.ContainerPath, m.Image, image.GetImage().GetId(), err)
			}
		}
		for what, m := range map[string]*runtimeapi.Mount{
			"missing sub path":  {ImageSubPath: "no/such/path"},
			"sub path leads up": {ImageSubPath: "../../etc"},
			"absolute sub path": {ImageSubPath: "/etc"},
		} {
			_, err := p.tryCreate("refused", idle(), volume(m))
			e.refused(what, err, codes.Unknown, "ImageVolumeMountFailed", "/image")
		}
		_, err := p.tryCreate("refused", idle(), mounts(&runtimeapi.Mount{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: "docker.io/library/none"}, Readonly: true}))
		e.refused("image that is not there", err, codes.Unknown, "ImageVolumeMountFailed")
		_, err = p.tryCreate("refused", idle(), mounts(&runtimeapi.Mount{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: busybox}}))
		e.refused("a volume that is not readonly", err, codes.InvalidArgument, "/image", "readonly")
		_, err = e.cri.RemoveImage(e.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: grouped}})
		e.refused("removal of a mounted image", err, codes.FailedPrecondition)

		if e.rangeSize() >= 2*65536 {
			nested := e.pod("nested", userns(65536)).start("c", idle(), volume(&runtimeapi.Mount{}))
			e.contains("in a pod with a user namespace", nested.exec("cat", "/image/etc/passwd"), "default-user")
			e.run("ID mappings", func(e env) { mappedImageVolume(e, volume) })
		}
	})
}

// mappedImageVolume: with the mappings of the pod's user namespace an image volume shows
// the image's own IDs, as the container's root file system does.
func mappedImageVolume(e env, volume func(*runtimeapi.Mount) change) {
	ids := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
	p := e.pod("mapped", userns(65536))
	c := p.start("c", idle(), volume(&runtimeapi.Mount{ImageSubPath: "etc", UidMappings: ids, GidMappings: ids}))
	e.equal("owner", c.exec("stat", "-c", "%u:%g", "/image/passwd"), "0:0")
	c.fails("touch /image/x", "ead-only file system")
	_, err := p.tryCreate("half", idle(), volume(&runtimeapi.Mount{UidMappings: ids}))
	e.refused("mappings of users alone", err, codes.InvalidArgument, "ID mappings")
	_, err = e.pod("plain", nil).tryCreate("c", idle(), volume(&runtimeapi.Mount{UidMappings: ids, GidMappings: ids}))
	e.refused("mappings in a pod without a user namespace", err, codes.InvalidArgument, "ID mappings")
}

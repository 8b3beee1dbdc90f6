package rootless

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is where preflight and its checks look. ThisHost is the machine at hand;
// tests describe another one.
type Host struct {
	// Root is the directory that stands for /; "" is / itself.
	Root string
	// Path is $PATH, below Root or not.
	Path string
	// UID and GID are the caller's, Name its login name ("" when nobody knows it).
	UID, GID int
	Name     string
	// RootUID is who must own a setuid program: 0 but in tests.
	RootUID int
	// UIDMap and GIDMap are those of the user namespace that we are in.
	UIDMap, GIDMap []IDMap
	// NoNewPrivs: setuid programs are without effect (prctl(2)).
	NoNewPrivs bool
	// NoIPv4, NoIPv6: its network has no way out by that at the moment.
	NoIPv4, NoIPv6 bool
	// Executable is the path of the running program.
	Executable string
	// TryUserNS makes a user namespace and mounts in it.
	TryUserNS func() error
	// TryProc also mounts a /proc of a PID namespace of its own.
	TryProc func() error

	nameErr error // why Name is not known
}

// ThisHost describes the machine and the calling process.
func ThisHost() Host {
	h := Host{Path: os.Getenv("PATH"), UID: os.Geteuid(), GID: os.Getegid(), TryUserNS: tryUserNS, TryProc: tryProc}
	if u, err := currentUser(); err != nil {
		h.nameErr = err
	} else {
		h.Name = u.Username
	}
	h.UIDMap, _ = readIDMap("self", "uid_map")
	h.GIDMap, _ = readIDMap("self", "gid_map")
	if v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && v == 1 {
		h.NoNewPrivs = true
	}
	h.Executable, _ = os.Executable()
	way := HostWayOut()
	h.NoIPv4, h.NoIPv6 = !way.IPv4, !way.IPv6
	return h
}

// File returns where the host's file of that absolute name is.
func (h Host) File(name string) string { return filepath.Join("/", h.Root, name) }

// Sysctl reads a number below /proc/sys; false when there is no such number.
func (h Host) Sysctl(name string) (int, bool) {
	b, err := os.ReadFile(h.File("/proc/sys/" + name))
	if err != nil {
		return 0, false
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return v, err == nil
}

// LookPath finds a program in Path, also by an absolute name.
func (h Host) LookPath(name string) (string, error) {
	candidates := []string{h.File(name)}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, dir := range filepath.SplitList(h.Path) {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	for _, path := range candidates {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// InUserNS reports whether we are in a user namespace other than the machine's
// first one, by its ID map (user_namespaces(7)).
func (h Host) InUserNS() bool {
	return len(h.UIDMap) != 1 || h.UIDMap[0] != IDMap{Size: 1<<32 - 1}
}

// Container returns the sign that we are in a container: "" when there is none.
func (h Host) Container() string {
	if h.InUserNS() {
		return "a user namespace (/proc/self/uid_map)"
	}
	for _, mark := range []string{"/run/.containerenv", "/.dockerenv", "/var/run/secrets/kubernetes.io"} {
		if _, err := os.Stat(h.File(mark)); err == nil {
			return mark
		}
	}
	return ""
}

// Proc makes sure that containers can have a /proc of their own: where parts of
// the one around us are masked, the kernel mounts no fresh one
// (mount_namespaces(7)).
func (h Host) Proc() *Problem {
	if err := h.TryProc(); err != nil {
		return &Problem{ErrNoProc, err.Error(),
			"start this container with an unmasked /proc (Kubernetes: procMount: Unmasked with hostUsers: false; " +
				"Docker, Podman: --security-opt systempaths=unconfined)"}
	}
	return nil
}

// Tun tries /dev/net/tun, which slirp4netns, pasta and gvisor-tap-vsock need.
func (h Host) Tun() *Problem { return h.device("/dev/net/tun", "tun", ErrNoTun) }

// Fuse tries /dev/fuse, which fuse-overlayfs needs.
func (h Host) Fuse() *Problem { return h.device("/dev/fuse", "fuse", ErrNoFuse) }

func (h Host) device(name, module string, sentinel error) *Problem {
	f, err := os.OpenFile(h.File(name), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		f.Close()
		return nil
	}
	fix := "sudo modprobe " + module
	if mark := h.Container(); mark != "" {
		fix = "start this container with the device (Docker, Podman: --device " + name + ")"
	}
	if errors.Is(err, os.ErrPermission) {
		fix = "sudo chmod 0666 " + name
	}
	return &Problem{sentinel, err.Error(), fix}
}

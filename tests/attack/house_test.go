package attack

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// An escape finds an empty house: what a process can do that has broken out of its
// container into the namespaces of the node, where it is root with every capability.
// "subpod nsenter" stands for the escape; this test binary is what it runs there.
//
// Each attack is tried in a node with the full view, too, where it must get through
// unless another wall stops it: an attack that cannot succeed proves nothing.

const (
	envEscape   = "SUBPOD_ATTACK_ESCAPE" // a plan as JSON: this process is the escape
	houseSecret = "a secret of the user's"
)

// escapePlan is what the escape is told.
type escapePlan struct {
	Home, XDG, RunDir, DataDir, Shared string
	Sockets                            []string
	// Handles of namespaces outside, as name_to_handle_at(2) gives them: the best that
	// an escape could guess.
	Handles map[string]handleOf
}

type handleOf struct {
	Type  int32
	Bytes string
}

func init() {
	if text := os.Getenv(envEscape); text != "" {
		var p escapePlan
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for name, attack := range p.attacks() {
			result := "through"
			if err := attack(); err != nil {
				result = "repelled: " + strings.ReplaceAll(err.Error(), "\n", " ")
			}
			fmt.Printf("%s\t%s\n", name, result)
		}
		os.Exit(0)
	}
}

// attacks are by name; nil is that one got through.
func (p escapePlan) attacks() map[string]func() error {
	all := map[string]func() error{
		"read the ssh key":                     func() error { return readsSecret(filepath.Join(p.Home, ".ssh/id_ed25519")) },
		"read a file of the home":              func() error { return readsSecret(filepath.Join(p.Home, "letters.txt")) },
		"the ssh key by /proc/1/root":          func() error { return readsSecret("/proc/1/root" + p.Home + "/.ssh/id_ed25519") },
		"the ssh key by any process's root":    func() error { return p.byProc("root") },
		"the ssh key by any process's cwd":     func() error { return p.byProc("cwd") },
		"write the configuration":              func() error { return writes(filepath.Join(p.Home, ".config/subpod/subpod.toml")) },
		"write the configuration, remounted":   func() error { return remounted(filepath.Join(p.Home, ".config/subpod"), "subpod.toml") },
		"write the configuration, unmounted":   func() error { return unmounted(filepath.Join(p.Home, ".config/subpod"), p.Home) },
		"write what commands go by":            func() error { return writes(p.served()) },
		"write what commands go by, remounted": func() error { return remounted(filepath.Dir(p.served()), filepath.Base(p.served())) },
		"move what commands go by":             p.moved,
		"mount again what commands go by":      func() error { return p.mountAgain() },
		"write beside the programs":            func() error { return p.byPrograms() },
		"shared memory of other programs":      func() error { return lists("/dev/shm", "other-program") },
		"a file of another program's in /tmp":  func() error { return readsSecret(filepath.Join(p.Shared, "../tmp-of-others")) },
		"handle of a file below the run mount": func() error { return p.byFileHandle() },
		"ask for the ssh key":                  p.asks(filepath.Join(p.Home, ".ssh/id_ed25519"), nil),
		"ask for the home":                     p.asks(p.Home, nil),
		"ask for /":                            p.asks("/", nil),
		"ask for the session's sockets":        p.asks(p.XDG, nil),
		"ask for the bus":                      p.asks(filepath.Join(p.XDG, "bus"), nil),
		"ask for what shells start with":       p.asks(filepath.Join(p.Home, ".profile"), nil),
		"ask for hidden directories":           p.asks(filepath.Join(p.Home, ".config"), nil),
		"ask for what starts with the session": p.asks(filepath.Join(p.Home, ".config/autostart"), nil),
		"ask for the user's programs":          p.asks(filepath.Join(p.Home, "bin"), nil),
		"ask for terminals":                    p.asks("/dev/pts", nil),
		"ask for /dev":                         p.asks("/dev", nil),
		"ask for /tmp":                         p.asks("/tmp", nil),
		"ask by ..":                            p.asks(p.Shared+"/../.ssh", nil),
		"ask by a link":                        p.asks(p.Shared+"/link", p.link("../.ssh")),
		"ask by an absolute link":              p.asks(p.Shared+"/link", p.link(p.Home+"/.ssh")),
		"ask by /proc":                         p.asks("/proc/self/root"+p.Home+"/.ssh", nil),
		"ask by a link to /proc":               p.asks(p.Shared+"/link", p.link("/proc/self/cwd")),
		"ask for the parent's root":            p.asks(p.Shared+"/link", p.link("/proc/self/root")),
		"ask for what holds the daemon's own":  p.asks(filepath.Dir(p.DataDir), nil),
		"ask in a race":                        p.race,
		"grant without a proof":                func() error { return p.grant("/proc/self/exe") },
		"grant with the node's user namespace": func() error { return p.grant("/proc/self/ns/user") },
		"grant with PID 1's user namespace":    func() error { return p.grant("/proc/1/ns/user") },
		"tell the service manager a PID":       func() error { return p.notify("MAINPID=1") },
	}
	for _, name := range p.Sockets {
		all["connect to "+filepath.Base(name)] = func() error {
			conn, err := net.Dial("unix", name)
			if err == nil {
				conn.Close()
			}
			return err
		}
	}
	for name, h := range p.Handles {
		all["handle of the "+name] = func() error { return opens(h) }
	}
	return all
}

func readsSecret(name string) error {
	b, err := os.ReadFile(name)
	if err == nil && !strings.Contains(string(b), houseSecret) {
		err = fmt.Errorf("it says %.20q", b)
	}
	return err
}

func writes(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func lists(dir, entry string) error {
	_, err := os.Stat(filepath.Join(dir, entry))
	return err
}

// byProc looks through the eyes of every process in sight.
func (p escapePlan) byProc(link string) error {
	roots, _ := filepath.Glob("/proc/[0-9]*/" + link)
	last := errors.New("no process")
	for _, root := range roots {
		last = readsSecret(filepath.Join(root, p.Home, ".ssh/id_ed25519"))
		if link == "cwd" {
			last = readsSecret(filepath.Join(root, strings.Repeat("../", 12), p.Home, ".ssh/id_ed25519"))
		}
		if last == nil {
			return nil
		}
	}
	return last
}

func remounted(dir, name string) error {
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	attrErr := unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_RECURSIVE, &attr)
	mountErr := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, "")
	return errors.Join(writes(filepath.Join(dir, name)), attrErr, mountErr)
}

func unmounted(dir, home string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return err
	}
	return readsSecret(filepath.Join(home, "letters.txt"))
}

// served is the configuration that commands outside of the node use while the user's is
// invalid.
func (p escapePlan) served() string { return filepath.Join(p.RunDir, "outside/served-config.json") }

// moved puts another directory in the place of the one that commands read, and undoes it.
func (p escapePlan) moved() error {
	dir, away := filepath.Dir(p.served()), filepath.Join(p.RunDir, "moved")
	if err := os.Rename(dir, away); err != nil {
		return err
	}
	return os.Rename(away, dir)
}

// mountAgain looks for the writable directory below a read-only mount.
func (p escapePlan) mountAgain() error {
	dir, err := os.MkdirTemp("/tmp", "again")
	if err != nil {
		return err
	}
	if err := unix.Mount(p.RunDir, dir, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return writes(filepath.Join(dir, "outside/served-config.json"))
}

// byPrograms plants a program where the user's shell, or the next daemon, finds it.
func (p escapePlan) byPrograms() error {
	name := filepath.Join(filepath.Dir(os.Getenv("SUBPOD_ATTACK_PROGRAM")), "planted")
	if err := os.WriteFile(name, nil, 0o755); err != nil {
		return err
	}
	return os.Remove(name)
}

// byFileHandle opens what a mount in the node hides by handle: the directory around it.
func (p escapePlan) byFileHandle() error {
	dir, err := os.Open(p.DataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	h, ok := p.Handles["home directory"]
	if !ok {
		return errors.New("no handle")
	}
	fd, err := openHandle(int(dir.Fd()), h)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return readsSecret(fmt.Sprintf("/proc/self/fd/%d/letters.txt", fd))
}

func openHandle(mount int, h handleOf) (int, error) {
	b, err := hex.DecodeString(h.Bytes)
	if err != nil {
		return -1, err
	}
	return unix.OpenByHandleAt(mount, unix.NewFileHandle(h.Type, b), unix.O_RDONLY)
}

// opens tries the handle of a namespace, and to enter it.
func opens(h handleOf) error {
	own, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	fd, err := openHandle(own, h)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// asks the broker for a path, after prepare, and looks into what comes.
func (p escapePlan) asks(path string, prepare func(shared string) error) func() error {
	return func() error {
		if prepare != nil {
			shared, err := p.attachShared()
			if err != nil {
				return fmt.Errorf("the attack cannot be prepared: %w", err)
			}
			if err := prepare(shared); err != nil {
				return fmt.Errorf("the attack cannot be prepared: %w", err)
			}
		}
		fd, err := p.ask("open", path, "", -1)
		if err != nil {
			return err
		}
		unix.Close(fd)
		return nil
	}
}

// attachShared mounts the directory that the list allows, and returns its place. With
// the full view it is there.
func (p escapePlan) attachShared() (string, error) {
	fd, err := p.ask("open", p.Shared, "", -1)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	dir, err := os.MkdirTemp("/tmp", "shared")
	if err != nil {
		return "", err
	}
	return dir, unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func (p escapePlan) link(target string) func(string) error {
	return func(shared string) error {
		_ = os.Remove(filepath.Join(shared, "link"))
		return os.Symlink(target, filepath.Join(shared, "link"))
	}
}

// race exchanges a directory for a link while the broker looks at it.
func (p escapePlan) race() error {
	shared, err := p.attachShared()
	if err != nil {
		return err
	}
	dir, link := filepath.Join(shared, "dir"), filepath.Join(shared, "dir.link")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.RemoveAll(link), os.Symlink("../.ssh", link)); err != nil {
		return err
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	}()
	given := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		fd, err := p.ask("open", p.Shared+"/dir", "", -1)
		if err != nil {
			continue
		}
		given++
		got := readsSecret(fmt.Sprintf("/proc/self/fd/%d/id_ed25519", fd))
		unix.Close(fd)
		if got == nil {
			return nil
		}
	}
	return fmt.Errorf("given %d times, and never the secret", given)
}

func (p escapePlan) grant(proof string) error {
	f, err := os.Open(proof)
	if err != nil {
		return err
	}
	defer f.Close()
	path := filepath.Join(p.Home, ".ssh")
	if _, err := p.ask("grant", path, path, int(f.Fd())); err != nil {
		return err
	}
	return p.asks(path, nil)()
}

func (p escapePlan) notify(state string) error {
	_, err := p.ask("notify", state, "", -1)
	return err
}

// ask speaks to the broker by itself: the client's own checks are no defence.
func (p escapePlan) ask(op, path, real string, fd int) (int, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(p.RunDir, "node/broker.sock"), Net: "unixpacket"})
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	request, err := json.Marshal(map[string]string{"Op": op, "Path": path, "Real": real})
	if err != nil {
		return -1, err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if _, _, err := conn.WriteMsgUnix(request, rights, nil); err != nil {
		return -1, err
	}
	b, oob := make([]byte, 16<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return -1, err
	}
	var answer struct{ Denied, Failed string }
	if err := json.Unmarshal(b[:n], &answer); err != nil {
		return -1, err
	}
	if answer.Denied+answer.Failed != "" {
		return -1, errors.New(answer.Denied + answer.Failed)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) == 0 {
		return -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1, errors.New("no descriptor")
	}
	return fds[0], nil
}

// house is a home with secrets in it, and a node.
type house struct {
	*testing.T
	n    *node.Node
	plan escapePlan
}

func newHouse(t *testing.T, view, lists string) *house {
	t.Helper()
	h := &house{T: t}
	h.n = node.Prepare(t, node.Options{})
	h.plan = escapePlan{Home: h.n.Home, XDG: h.n.XDG, RunDir: h.n.RunDir, DataDir: h.n.DataDir, Shared: filepath.Join(h.n.Home, "shared"), Handles: map[string]handleOf{}}
	h.n.WriteHome(".config/subpod/subpod.toml", fmt.Sprintf("[node]\nview = %q\nuplink = \"none\"\n", view))
	if lists == "" {
		lists = h.plan.Shared
	}
	h.n.WriteHome(".config/subpod/subpod.toml.d/host_paths.toml", fmt.Sprintf("[node]\nhost_paths = [%q]\n", lists))
	h.n.WriteHome(".ssh/id_ed25519", houseSecret)
	h.n.WriteHome("letters.txt", houseSecret)
	h.n.WriteHome("tmp-of-others", houseSecret)
	h.n.WriteHome(".profile", houseSecret)
	h.n.WriteHome(".config/autostart/program.desktop", houseSecret)
	h.n.WriteHome("bin/program", houseSecret)
	h.n.WriteHome("shared/file", "shared")
	h.n.WriteHome("granted/file", "granted")
	for _, name := range []string{"bus", "keyring/control", "agent.sock"} {
		path := filepath.Join(h.n.XDG, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		h.plan.Sockets = append(h.plan.Sockets, path)
	}
	h.n.Run()
	h.handle("daemon's mount namespace", fmt.Sprintf("/proc/%d/ns/mnt", h.n.PID()))
	h.handle("daemon's user namespace", fmt.Sprintf("/proc/%d/ns/user", h.n.PID()))
	h.handle("host's mount namespace", "/proc/self/ns/mnt")
	h.handle("host's user namespace", "/proc/self/ns/user")
	h.handle("home directory", h.n.Home)
	return h
}

// handle notes the handle of a file outside of the node.
func (h *house) handle(name, path string) {
	h.Helper()
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		h.Logf("this kernel gives no handle of the %s: %v", name, err)
		return
	}
	h.plan.Handles[name] = handleOf{handle.Type(), hex.EncodeToString(handle.Bytes())}
}

// escape runs the attacks in the node and returns what came of each.
func (h *house) escape() map[string]string {
	h.Helper()
	program := filepath.Join(h.n.DataDir, "escape")
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	if err := copyFile(self, program); err != nil {
		h.Fatal(err)
	}
	defer os.Remove(program)
	plan, err := json.Marshal(h.plan)
	if err != nil {
		h.Fatal(err)
	}
	out := h.n.Enter("env", envEscape+"="+string(plan), "SUBPOD_ATTACK_PROGRAM="+node.Path(h, node.Subpod), program)
	results := map[string]string{}
	for line := range strings.Lines(out) {
		name, result, _ := strings.Cut(strings.TrimSpace(line), "\t")
		results[name] = result
	}
	if len(results) != len(h.plan.attacks()) {
		h.Fatalf("%d results of %d attacks:\n%s", len(results), len(h.plan.attacks()), out)
	}
	return results
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func TestHouseIsEmpty(t *testing.T) {
	for name, lists := range map[string]string{"one directory is listed": "", "as it comes": "/"} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, "minimal", lists)
			for name, result := range h.escape() {
				if result == "through" {
					t.Errorf("%s: the escape got through", name)
				} else if testing.Verbose() {
					t.Logf("%s: %s", name, result)
				}
			}
			h.lends()
			h.commandsGoByTheirOwn()
		})
	}
}

// commandsGoByTheirOwn: while the user's configuration is invalid, a command outside of
// the node uses the one that served last, and not what an escape says that was.
func (h *house) commandsGoByTheirOwn() {
	h.n.Enter("sh", "-c", fmt.Sprintf("sed 's,%[1]s/subpod.sock,%[1]s/other.sock,g' %[1]s/node/served-config.json >%[1]s/node/new && mv %[1]s/node/new %[1]s/node/served-config.json && grep -q other.sock %[1]s/node/served-config.json", h.n.RunDir))
	h.n.WriteHome(".config/subpod/subpod.toml.d/zz.toml", "no such [ syntax")
	defer os.Remove(filepath.Join(h.n.Home, ".config/subpod/subpod.toml.d/zz.toml"))
	if out, err := h.n.Subpod("info"); err != nil {
		h.Errorf("a command goes by what the node has written: %v: %s", err, out)
	}
}

// lends: what is allowed comes in, so the broker does not repel everything.
func (h *house) lends() {
	if _, err := h.plan.ask("open", h.plan.Shared, "", -1); err != nil {
		h.Errorf("the list allows %s: %v", h.plan.Shared, err)
	}
	image := "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	h.n.Crictl("pull", image)
	out, err := h.n.Subpod("run", "--rm", "-v", h.n.Home+"/granted:/x", image, "cat", "/x/file")
	if err != nil || strings.TrimSpace(out) != "granted" {
		h.Errorf("what a command names: %q, %v", out, err)
	}
	h.refusesCRI(image)
}

// refusesCRI: a client of the API has no more than the list.
func (h *house) refusesCRI(image string) {
	c, ctx := h.n.CRI(), h.Context()
	sandbox := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "house", Uid: "1", Namespace: "attack"}}
	pod, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		h.Fatal(err)
	}
	for path, allowed := range map[string]bool{h.plan.Shared: true, h.n.Home + "/.ssh": false, h.n.XDG + "/bus": false, h.plan.Shared + "/../.ssh": false} {
		_, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, SandboxConfig: sandbox,
			Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: filepath.Base(path)},
				Image:    &runtimeapi.ImageSpec{Image: image}, Command: []string{"sleep", "1000"},
				Mounts: []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: path}},
			}})
		if (err == nil) != allowed {
			h.Errorf("a container with %s by the CRI: %v", path, err)
		}
	}
	if _, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
		h.Error(err)
	}
}

// TestHouseFull: in a node with the full view the same attacks get through, so they
// are attacks. Those on the broker have no broker there.
func TestHouseFull(t *testing.T) {
	results := newHouse(t, "full", "").escape()
	for _, name := range []string{"read the ssh key", "read a file of the home", "the ssh key by /proc/1/root", "the ssh key by any process's root",
		"write the configuration", "write what commands go by", "mount again what commands go by", "connect to bus", "connect to control", "connect to agent.sock"} {
		if results[name] != "through" {
			t.Errorf("%s with the full view: %s", name, results[name])
		}
	}
}

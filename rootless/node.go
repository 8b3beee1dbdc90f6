package rootless

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
)

// ErrNoNode says that no node runs for a run directory.
var ErrNoNode = errors.New("no node is running")

// IDMap is one line of a uid_map or gid_map (user_namespaces(7)).
type IDMap = idmap.Map

// Node is what is known of a running node. It is read with Load and does not
// change while the node lives.
type Node struct {
	// RunDir and DataDir that the node was made for. DataDir is empty in a node of an
	// earlier version.
	RunDir, DataDir string
	// ChildPID is the node's PID 1 as seen from the caller's PID namespace.
	ChildPID int
	// Inside: the caller is in the node.
	Inside bool
	// NetNS is the path of the node network namespace, valid for the caller.
	// Empty in a nested node and with UplinkHost: these use the network namespace
	// that they were started in.
	NetNS string
	// ResolvConf is a file that names the uplink's DNS server, which answers in
	// the node network namespace. Empty where there is none.
	ResolvConf string
	// UIDMap and GIDMap are the node's ID ranges: Host is as seen from the user
	// namespace in which the node was made.
	UIDMap, GIDMap []IDMap
	// Nested: the node lives in a user namespace that someone else made.
	Nested bool
	// Identity changes when the node is a new one: a server that finds the one
	// it knows was restarted, another one means that the node was rebooted and
	// that no process, mount or namespace of the old one exists any more.
	Identity string
	// CgroupHybrid: the host has legacy or hybrid cgroups, which the node hides
	// behind an empty tmpfs: there are no limits.
	CgroupHybrid bool
	// CgroupNS: the node has a cgroup namespace, so that /sys/fs/cgroup shows
	// the daemon's own cgroup v2 as root.
	CgroupNS bool
	// CgroupEvacuated is the leaf below /sys/fs/cgroup that holds the daemon's
	// own processes, when the cgroup was delegated. Empty otherwise.
	CgroupEvacuated string
	// Uplink in use, one of the constants but UplinkAuto, and why.
	Uplink, UplinkReason string
	// IPv6: the uplink leads to the outside by IPv6, where the host has a way. NoIPv6 is why
	// it does not; both are empty for those that are no uplinks.
	IPv6   bool
	NoIPv6 string
	// IDMapping in use, one of the constants but IDsAuto, and why. Both are empty
	// in a nested node.
	IDMapping, IDReason string
	// View is ViewMinimal or ViewFull, ViewReason why it is not what the configuration
	// says. Shown are the host's paths, links followed, that a minimal view has under
	// the same names. In a node of an earlier version View is empty, and is the full one.
	View, ViewReason string
	Shown            []string
	// PortSocket is the API of the port driver; empty where NetNS is: ports are
	// those of the network namespace already.
	PortSocket string

	// MonitorSocket is where the container monitor serves.
	MonitorSocket string

	init proc.ID // as seen in the node
}

// facts are what the node's PID 1 writes for Load.
type facts struct {
	DataDir         string
	Identity        string
	Init            proc.ID // as seen in its own PID namespace
	UserNS, PIDNS   uint64  // inode numbers
	Nested          bool
	CgroupHybrid    bool
	CgroupNS        bool
	CgroupEvacuated string
	Uplink          string
	UplinkReason    string
	IPv6            bool
	NoIPv6          string
	IDMapping       string
	IDReason        string
	View            string
	ViewReason      string
	Shown           []string
	UIDMap, GIDMap  []IDMap // where those of the node's first process do not show the host
}

// writeFacts is called by the node's first process once its mounts are done.
func writeFacts(c Config, cg cgroupFacts, nested bool) (err error) {
	f := facts{DataDir: c.DataDir, Nested: nested, CgroupHybrid: cg.legacy}
	f.View, f.ViewReason, f.Shown = c.View, c.ViewReason, c.Seen
	f.UIDMap, f.GIDMap = c.UIDMap, c.GIDMap
	if !nested {
		f.Uplink, f.UplinkReason = c.Uplink, c.UplinkReason
		f.IPv6, f.NoIPv6 = c.IPv6, c.NoIPv6
		f.IDMapping, f.IDReason = c.IDMapping, c.IDReason
		f.CgroupNS = cg.unified && !c.HostCgroupNS
	}
	if !c.HostCgroupNS && cg.unified && filepath.Base(cg.own) == nodeCgroup {
		f.CgroupEvacuated = nodeCgroup
	}
	if f.UserNS, err = nsInode("self", "user"); err != nil {
		return err
	}
	if f.PIDNS, err = nsInode("self", "pid"); err != nil {
		return err
	}
	if f.Init, err = proc.Identify(os.Getpid()); err != nil {
		return fmt.Errorf("identify the node's first process: %w", err)
	}
	if f.Identity, err = identity(f.PIDNS); err != nil {
		return err
	}
	return writeJSON(filepath.Join(nodeDir(c.RunDir), fileFacts), f)
}

// identity names the PID namespace of this process for all time: inode numbers
// are used again, and start times count from the boot.
func identity(pidns uint64) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	first, err := proc.Identify(1)
	if err != nil {
		return "", fmt.Errorf("identify PID 1: %w", err)
	}
	return fmt.Sprintf("%s:%d:%d", strings.TrimSpace(string(boot)), pidns, first.StartTime), nil
}

// Load returns what is known of the node of runDir, from inside it or from where it
// was made. ErrNoNode when none runs, or none that has finished its set-up.
func Load(runDir string) (*Node, error) {
	dir := nodeDir(runDir)
	var f facts
	err := readJSON(filepath.Join(dir, fileFacts), &f)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w for %s: start it with \"subpod daemon\"", ErrNoNode, runDir)
	}
	if err != nil {
		return nil, err
	}
	n := &Node{
		RunDir: runDir, DataDir: f.DataDir, Nested: f.Nested, Identity: f.Identity, init: f.Init,
		Uplink: f.Uplink, UplinkReason: f.UplinkReason, IPv6: f.IPv6, NoIPv6: f.NoIPv6, IDMapping: f.IDMapping, IDReason: f.IDReason,
		View: f.View, ViewReason: f.ViewReason, Shown: f.Shown,
		CgroupHybrid: f.CgroupHybrid, CgroupNS: f.CgroupNS, CgroupEvacuated: f.CgroupEvacuated,
	}
	if tap := f.Uplink == UplinkSlirp || f.Uplink == UplinkPasta; tap && !f.IPv6 && f.NoIPv6 == "" {
		n.NoIPv6 = "the daemon was started by an earlier version"
	}
	if err := n.locate(dir, f); err != nil {
		return nil, err
	}
	child := strconv.Itoa(n.ChildPID)
	if n.UIDMap, n.GIDMap = f.UIDMap, f.GIDMap; len(n.UIDMap) == 0 {
		if n.UIDMap, err = readIDMap(child, "uid_map"); err != nil {
			return nil, err
		}
		if n.GIDMap, err = readIDMap(child, "gid_map"); err != nil {
			return nil, err
		}
	}
	n.MonitorSocket = filepath.Join(dir, wire.Socket)
	if n.Nested || n.Uplink == UplinkHost {
		return n, nil
	}
	n.PortSocket = filepath.Join(dir, fileAPISocket)
	if st, err := os.Stat(filepath.Join(dir, fileResolvConf)); err == nil && st.Size() > 0 {
		n.ResolvConf = filepath.Join(dir, fileResolvConf)
	}
	n.NetNS = filepath.Join(dir, fileNetNS)
	if !n.Inside {
		// The mount that pins it exists in the node's mount namespace only.
		n.NetNS = filepath.Join("/proc", child, "root", n.NetNS)
	}
	return n, nil
}

// locate finds the node's first process from where we are, and makes sure that
// it is the one that wrote the facts.
func (n *Node) locate(dir string, f facts) error {
	user, err := nsInode("self", "user")
	if err != nil {
		return err
	}
	pid, err := nsInode("self", "pid")
	if err != nil {
		return err
	}
	if user == f.UserNS && pid == f.PIDNS {
		n.Inside, n.ChildPID = true, f.Init.PID
	} else {
		b, err := os.ReadFile(filepath.Join(dir, fileChildPID))
		if err != nil {
			return fmt.Errorf("%w for %s: %w", ErrNoNode, n.RunDir, err)
		}
		if n.ChildPID, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			return fmt.Errorf("read the node's PID: %w", err)
		}
	}
	stale := fmt.Errorf("%w for %s: what is left there is of an earlier one", ErrNoNode, n.RunDir)
	id := proc.ID{PID: n.ChildPID, StartTime: f.Init.StartTime}
	if !id.Alive() {
		return stale
	}
	if ns, err := nsInode(strconv.Itoa(n.ChildPID), "pid"); err == nil && ns != f.PIDNS {
		return stale
	}
	return nil
}

// SingleID reports whether the node has one user and one group ID only.
func (n *Node) SingleID() bool { return countIDs(n.UIDMap) == 1 || countIDs(n.GIDMap) == 1 }

func countIDs(maps []IDMap) (n uint64) {
	for _, m := range maps {
		n += uint64(m.Size)
	}
	return n
}

func readIDMap(pid, name string) ([]IDMap, error) {
	f, err := os.Open(filepath.Join("/proc", pid, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var maps []IDMap
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var m IDMap
		if _, err := fmt.Sscan(sc.Text(), &m.Container, &m.Host, &m.Size); err != nil {
			return nil, fmt.Errorf("parse %s: %w", f.Name(), err)
		}
		maps = append(maps, m)
	}
	return maps, sc.Err()
}

// nsInode returns the number of a namespace of a process.
func nsInode(pid, kind string) (uint64, error) {
	var st syscall.Stat_t
	name := filepath.Join("/proc", pid, "ns", kind)
	if err := syscall.Stat(name, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", name, err)
	}
	return st.Ino, nil
}

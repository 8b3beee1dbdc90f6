package rootless

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
)

// Config says how to make the node. It is handed to the re-executed processes
// as JSON, so everything but Log must survive that.
type Config struct {
	// RunDir holds what lives as long as the node; its state is in RunDir/node.
	// It must be absolute and short: sockets below it have names of up to 107
	// bytes.
	RunDir string
	// DataDir holds what outlives the node (the sources of the default binds).
	DataDir string
	// Uplink connects the node network namespace to the host: one of Uplinks.
	// Empty means UplinkAuto.
	Uplink string
	// UplinkFallback is tried in this order when the program of Uplink is missing, or
	// UplinkFault finds one.
	UplinkFallback []string
	// UplinkFault says why the program of an uplink should not be used, "" for no reason:
	// one is used all the same where no other is there. nil finds no faults.
	UplinkFault func(uplink string) string `json:"-"`
	fellBack    bool                       // to one of UplinkFallback
	faulty      bool                       // UplinkFault finds one of Uplink
	// IPv6 gives pods a way to the outside by IPv6, where the host has one and the uplink can.
	// Run sets NoIPv6, the reason where it cannot, and takes IPv6 back then.
	IPv6   bool
	NoIPv6 string
	// IDMapping is one of IDMappings; empty means IDsAuto.
	IDMapping string
	// UplinkReason and IDReason say why what was left to the host ("auto") came out
	// as it did. Run sets them.
	UplinkReason, IDReason string
	// MTU of the uplink in bytes; 0 is the uplink's own best (65520).
	MTU int
	// SlirpBinary and PastaBinary are paths or names looked up in PATH.
	SlirpBinary, PastaBinary string
	// DisableHostLoopback keeps pods from reaching the host's 127.0.0.1 through
	// the uplink's gateway address.
	DisableHostLoopback bool
	// CopyUp are directories that get a writable tmpfs with links to the host's
	// entries. nil means DefaultCopyUp.
	CopyUp []string
	// Binds are mounted after the copy-up. nil means DefaultBinds(DataDir).
	Binds []Bind
	// HostCgroupNS keeps the node in the host's cgroup namespace. The systemd
	// cgroup driver needs it: its scopes lie outside the daemon's own cgroup.
	HostCgroupNS bool
	// View is one of Views; empty means ViewAuto.
	View string
	// ViewReason says why View came out otherwise than configured. Run sets it.
	ViewReason string
	// Served is the configuration that the server will serve with, as Node.ServedConfig
	// gives it to commands outside of the node; nil for none.
	Served []byte
	// HostPaths are files and directories of the host that a node with ViewMinimal may
	// have whoever in it asks.
	HostPaths []string
	// Shown are files and directories of the host that a node with ViewMinimal shows
	// under the same name, read-only: the user's configuration. Programs are names or
	// paths of programs that the server runs, whose directories it shows, too.
	Shown, Programs []string
	// Writable are directories that it shows as they are.
	Writable []string
	// Seen are all paths that such a node shows, links followed; UIDMap and GIDMap its
	// ID ranges as seen from where the daemon was started. Run sets them.
	Seen           []string
	UIDMap, GIDMap []IDMap
	// Server is the argument vector of the server. Server[0] is looked up again
	// at each start, so a new binary on disk is taken by the next one.
	Server []string
	// LogLevel and LogJSON shape the logger of the re-executed processes, which
	// write to stderr.
	LogLevel slog.Level
	LogJSON  bool
	// Log is used by the calling process; nil means one made from LogLevel.
	Log *slog.Logger `json:"-"`

	drivers []UplinkDriver // what this process has beside the ones that all have
	outer   *outerNS       // set in the parent of a node with ViewMinimal
}

// Bind is a mount from the host's view of the file system into the node's.
type Bind struct {
	// Source is made (mode 0755) if it is missing.
	Source string
	// Target must exist or lie in a copied-up directory.
	Target   string
	ReadOnly bool
}

// ErrBadConfig wraps every complaint about a Config but the uplink's.
var ErrBadConfig = errors.New("bad node configuration")

// DefaultCopyUp returns the directories in which a kubelet, CNI plugins and
// their peers expect to write, as a new slice.
func DefaultCopyUp() []string {
	return []string{"/etc", "/run", "/var/lib", "/var/log", "/opt"}
}

// DefaultBinds returns the mounts of directories whose content must outlive
// the node: a kubelet's state, the keys and manifests that kubeadm makes, the cluster's
// own data, and the pods' logs.
func DefaultBinds(dataDir string) []Bind {
	return []Bind{
		{Source: filepath.Join(dataDir, "kubelet"), Target: "/var/lib/kubelet"},
		{Source: filepath.Join(dataDir, "kubernetes"), Target: "/etc/kubernetes"},
		{Source: filepath.Join(dataDir, "etcd"), Target: "/var/lib/etcd"},
		{Source: filepath.Join(dataDir, "logs", "pods"), Target: "/var/log/pods"},
	}
}

// resolve returns a copy with the defaults filled in, or what is wrong with it.
func (c Config) resolve() (Config, error) {
	if c.Uplink == "" {
		c.Uplink = UplinkAuto
	}
	if !slices.Contains(Uplinks(), c.Uplink) {
		return c, fmt.Errorf("%w %q: known are %q", ErrBadUplink, c.Uplink, Uplinks())
	}
	for _, u := range c.UplinkFallback {
		if u == UplinkAuto || !slices.Contains(Uplinks(), u) {
			return c, fmt.Errorf("%w %q as a fallback: known are %q", ErrBadUplink, u, Uplinks()[1:])
		}
	}
	if c.IDMapping == "" {
		c.IDMapping = IDsAuto
	}
	if c.View == "" {
		c.View = ViewAuto
	}
	if c.SlirpBinary == "" {
		c.SlirpBinary = "slirp4netns"
	}
	if c.PastaBinary == "" {
		c.PastaBinary = "pasta"
	}
	if c.CopyUp == nil {
		c.CopyUp = DefaultCopyUp()
	}
	if c.Binds == nil {
		c.Binds = DefaultBinds(c.DataDir)
	}
	if c.Log == nil {
		c.Log = newLogger(c, "node")
	}
	return c, c.check()
}

func (c Config) check() error {
	if c.MTU < 0 || c.MTU > maxMTU {
		return fmt.Errorf("%w: MTU %d, want 0 (automatic) to %d", ErrBadConfig, c.MTU, maxMTU)
	}
	if !slices.Contains(IDMappings(), c.IDMapping) {
		return fmt.Errorf("%w: ID mapping %q: known are %q", ErrBadConfig, c.IDMapping, IDMappings())
	}
	if !slices.Contains(Views(), c.View) {
		return fmt.Errorf("%w: view %q: known are %q", ErrBadConfig, c.View, Views())
	}
	if len(c.Server) == 0 {
		return fmt.Errorf("%w: no server command", ErrBadConfig)
	}
	dirs := append([]string{c.RunDir, c.DataDir}, c.CopyUp...)
	for _, b := range c.Binds {
		dirs = append(dirs, b.Source, b.Target)
	}
	for _, d := range dirs {
		if !filepath.IsAbs(d) || filepath.Clean(d) != d || d == "/" {
			return fmt.Errorf("%w: directory %q, want a clean absolute path below /", ErrBadConfig, d)
		}
	}
	return CheckRunDir(c.RunDir)
}

// MaxSocket is the length of the longest path of a unix socket: sockaddr_un holds 108 bytes
// with the final zero (unix(7)).
const MaxSocket = 107

// CheckRunDir returns ErrBadConfig when the paths of a node's sockets would be too long.
func CheckRunDir(dir string) error {
	if sock := filepath.Join(nodeDir(dir), ".bp-ready.pipe"); len(sock) > MaxSocket {
		return fmt.Errorf("%w: run directory %q is too long for sockets (%d bytes over)", ErrBadConfig, dir, len(sock)-MaxSocket)
	}
	return nil
}

// checkOwner makes sure that the run and data directories, where they are there, are
// the user's own. It changes nothing.
func (c Config) checkOwner() error {
	for _, d := range []string{c.RunDir, c.DataDir} {
		st, err := os.Stat(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if uid := ownerOf(st); uid != os.Geteuid() {
			return fmt.Errorf("%w: %s belongs to uid %d, but this is uid %d", ErrBadConfig, d, uid, os.Geteuid())
		}
	}
	return nil
}

// closeDirs makes the run and data directories private to the user.
func (c Config) closeDirs() error {
	for _, d := range []string{c.RunDir, c.DataDir} {
		if err := os.Chmod(d, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// nodeDir is rootlesskit's state directory: it is removed when the node ends.
func nodeDir(runDir string) string { return filepath.Join(runDir, "node") }

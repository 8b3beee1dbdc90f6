package rootless

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/parent"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/builtin"
	"golang.org/x/sys/unix"
)

// ErrRoot says that Run was called by the machine's root.
var ErrRoot = errors.New("subpod is rootless: run it as an ordinary user")

// Names of files in the node's state directory. The first two are
// rootlesskit's.
const (
	fileChildPID   = parent.StateFileChildPID
	fileAPISocket  = parent.StateFileAPISock
	fileNetNS      = parent.StateFileNetNs
	fileResolvConf = "resolv.conf"
	fileConfig     = "config.json"
	fileFacts      = "facts.json"
	fileReady      = "ready"
	fileSaved      = "served-config.json"
	fileDegraded   = "degraded"
)

// Run makes the node, runs Config.Server in it and blocks until the node ends.
// SIGTERM, SIGINT or the end of ctx stop the server first, then everything in
// the node, and Run returns nil. SIGHUP restarts the server only.
//
// Errors: ErrHeld, ErrRoot, ErrBadConfig, ErrBadUplink, and those of
// preflight. ErrHeld comes before anything is changed in the run and the data
// directory. A first server that refuses its configuration (ExitConfig) or cannot
// start ends the node with an error; once one has served, no failure of a server
// does. Inside a user namespace where the caller is uid 0 the
// node is made with that ID range and network instead (Node.Nested); without
// CAP_SYS_ADMIN there, a user namespace with the same IDs is made in it.
func Run(ctx context.Context, c Config) error {
	c, err := c.resolve()
	if err != nil {
		return err
	}
	if activated, err := takeActivation(); err != nil {
		return err
	} else if activated {
		c.Log.Debug("the service manager listens for clients")
	}
	if err := os.Setenv("PATH", withSbin(os.Getenv("PATH"))); err != nil {
		return err
	}
	h := ThisHost()
	if h.UID == 0 && !h.InUserNS() {
		return ErrRoot
	}
	nested := c.outer == nil && h.UID == 0 && hasSysAdmin()
	if c.outer == nil {
		auto := c.View == ViewAuto
		if c, err = c.choose(h, nested); err != nil {
			return err
		}
		if c.View == ViewMinimal {
			if err := c.checkHeld(); err != nil {
				return err
			}
			if err = enterOuter(c, h); !auto {
				return err
			}
			c.Log.Warn("no minimal view of the host for the node, which shows all then", "error", err)
			c.View, c.ViewReason = ViewFull, "a minimal one cannot be had: "+err.Error()
		}
	}
	if err := c.checkOwner(); err != nil {
		return err
	}
	locks, err := lockDirs(c.Log, c.RunDir, c.DataDir)
	if err != nil {
		return err
	}
	defer locks.release()
	if err := locks.writePID(); err != nil {
		return err
	}
	if err := c.closeDirs(); err != nil {
		return err
	}
	// Rootlesskit removes it at the end, but not after every failure to start.
	defer os.RemoveAll(nodeDir(c.RunDir))
	if err := prepareNodeDir(c); err != nil {
		return err
	}
	defer os.RemoveAll(outsideDir(c.RunDir))
	if err := errors.Join(os.MkdirAll(outsideDir(c.RunDir), 0o700), KeepServed(c.RunDir, c.Served)); err != nil {
		return err
	}
	reporting := make(chan struct{})
	defer close(reporting)
	go reportStatus(c, reporting)
	if nested {
		return runNested(ctx, c)
	}
	return runParent(ctx, c)
}

// choose decides what the configuration leaves to the host, and checks the host.
func (c Config) choose(h Host, nested bool) (Config, error) {
	c.View, c.ViewReason = c.view(h)
	if nested {
		return c, nil
	}
	c = c.resolveAuto(h)
	c.logChoices()
	return c, preflight(h, c)
}

// runParent is rootlesskit's parent: it blocks until the child has ended.
func runParent(ctx context.Context, c Config) error {
	redirectLogrus(c.Log)
	dir := nodeDir(c.RunDir)
	cg := detectCgroup()
	opt := parent.Opt{
		PipeFDEnvKey:             envPipe,
		ChildUseActivationEnvKey: envActivation,
		StateDir:                 dir,
		StateDirEnvKey:           envState,
		CreatePIDNS:              true,
		CreateUTSNS:              true,
		CreateIPCNS:              true,
		CreateCgroupNS:           cg.unified && !c.HostCgroupNS,
		Propagation:              "rprivate",
		SubidSource:              parent.SubidSourceAuto,
	}
	if err := addNetwork(&opt, c); err != nil {
		return err
	}
	if err := replaceMappers(c); err != nil {
		return fmt.Errorf("replace newuidmap: %w", err)
	}
	if c.outer != nil {
		defer removeView(c)
		stopBroker, err := prepareView(c)
		if err != nil {
			return err
		}
		defer stopBroker()
	}
	if opt.CreateCgroupNS && cg.delegated() {
		opt.EvacuateCgroup2 = nodeCgroup
	}
	// Rootlesskit forwards each signal to the child, and that one to the
	// supervisor: a signal to ourselves is the way to stop.
	stop := context.AfterFunc(ctx, func() { _ = unix.Kill(os.Getpid(), unix.SIGTERM) })
	defer stop()
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(asked)
	ended := make(chan struct{})
	var stopping atomic.Bool
	go func() {
		select {
		case <-asked:
			stopping.Store(true)
			repeatStop(dir, ended)
		case <-ended:
		}
	}()

	c.Log.Debug("making the node", "dir", dir, "uplink", c.Uplink, "cgroup", cg)
	err := runRootlesskit(opt)
	close(ended)
	if err != nil && (stopping.Load() || len(asked) > 0) {
		// Rootlesskit's child dies of a signal that comes before it has its
		// handlers. The node has ended, as it was asked to.
		c.Log.Debug("the node was stopped while it started", "error", err)
		return nil
	}
	if err != nil {
		return explainStart(err)
	}
	return nil
}

// forwardPoll is the time between two looks whether rootlesskit forwards signals.
const forwardPoll = 10 * time.Millisecond

// repeatStop sends SIGTERM to this process once rootlesskit forwards signals, if it did not
// do so yet: before, nobody has taken the one that has come. Rootlesskit writes the child's PID
// to the node's directory after that. It returns when the node has ended, too.
func repeatStop(dir string, ended <-chan struct{}) {
	name := filepath.Join(dir, fileChildPID)
	for first := true; ; first = false {
		if _, err := os.Stat(name); err == nil {
			if !first {
				_ = unix.Kill(os.Getpid(), unix.SIGTERM)
			}
			return
		}
		select {
		case <-ended:
			return
		case <-time.After(forwardPoll):
		}
	}
}

// prepareView makes what a node with ViewMinimal sees, tells the child, and starts the
// broker for the rest.
func prepareView(c Config) (stopBroker func(), err error) {
	if c.Seen, err = buildView(c); err != nil {
		return nil, fmt.Errorf("%w (node.view = \"full\" does without)", err)
	}
	c.UIDMap, c.GIDMap = c.outer.uids, c.outer.gids
	if err := writeJSON(filepath.Join(nodeDir(c.RunDir), fileConfig), c); err != nil {
		return nil, err
	}
	return startBroker(c, *c.outer)
}

// removeView removes the place where the view was put together: only once nothing is
// mounted there, since what is mounted are the host's own files.
func removeView(c Config) {
	dir := viewDir(c.RunDir)
	for unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
	_ = os.Remove(dir)
}

// addNetwork gives the node a network namespace, its uplink and the port driver.
func addNetwork(opt *parent.Opt, c Config) error {
	if !c.ownNetwork() {
		return nil
	}
	uplink, err := newUplink(c)
	if err != nil {
		return err
	}
	ports, err := builtin.NewParentDriver(debugWriter{c.Log, "port driver"}, opt.StateDir, true, "auto")
	if err != nil {
		return fmt.Errorf("set up the port driver: %w", err)
	}
	opt.DetachNetNS, opt.NetworkDriver, opt.PortDriver = true, uplink, ports
	return nil
}

// prepareNodeDir empties the state directory of an earlier node and writes the
// configuration into it, for the processes that are started next.
func prepareNodeDir(c Config) error {
	dir := nodeDir(c.RunDir)
	if err := parent.InitStateDir(dir); err != nil {
		return fmt.Errorf("clear %s: %w", dir, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, fileConfig), c)
}

// loadConfig reads what prepareNodeDir wrote; dir comes from the environment.
func loadConfig(dir string) (Config, error) {
	var c Config
	if dir == "" {
		return c, fmt.Errorf("%s is not set", envState)
	}
	return c, readJSON(filepath.Join(dir, fileConfig), &c)
}

// writeJSON replaces the file at once, so that a reader sees all or nothing.
func writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	tmp := name + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

func readJSON(name string, v any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %s: %w", name, err)
	}
	return nil
}

func ownerOf(st os.FileInfo) int {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}

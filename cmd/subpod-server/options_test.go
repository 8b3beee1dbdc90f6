package main

import (
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// manyIDs is a node as a user with subordinate IDs has it.
func manyIDs() *rootless.Node {
	ids := []rootless.IDMap{{Container: 0, Host: 1000, Size: 1}, {Container: 1, Host: 100000, Size: 65536}}
	return &rootless.Node{UIDMap: ids, GIDMap: ids}
}

// testConfig is the default configuration with directories of the test's own.
func testConfig(t *testing.T) *config.Config {
	t.Helper()
	cfg := config.Default()
	cfg.Daemon.RunDir, cfg.Daemon.DataDir = "/run/x", "/data/x"
	return cfg
}

// program puts an executable into a directory that becomes $PATH.
func program(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	return dir
}

func TestStorageOptions(t *testing.T) {
	path := program(t, "fuse-overlayfs")
	cfg := testConfig(t)
	cfg.Storage.Driver, cfg.Storage.AllowVFS = "auto", true
	cfg.Storage.AdditionalImageStores = []string{"/ro"}
	cfg.Images.Pinned, cfg.Images.MaxParallelDownloads = []string{"p*"}, 5
	cfg.Images.PullTimeout.Duration = 7 * time.Second
	limits := storage.DefaultLimits() // the file has the same
	limits.Layers, limits.Memory = 7, 512<<20
	cfg.Images.Limits.Layers, cfg.Images.Limits.Memory.Bytes = 7, 512<<20
	cfg.Images.AuthFile, cfg.Images.Policy, cfg.Images.RegistriesConf, cfg.Images.CertsDir = "/auth", "/policy", "/registries", "/certs"
	got := storageOptions(cfg, manyIDs())
	got.MountDir, got.Log = "", nil // of the machine
	want := storage.Options{
		Root: "/data/x/storage", RunRoot: "/run/x/storage", Driver: "auto", AllowVFS: true,
		MountProgram: filepath.Join(path, "fuse-overlayfs"), AdditionalStores: []string{"/ro"},
		RegistriesConf: "/registries", PolicyJSON: "/policy", AuthFile: "/auth", CertsDir: "/certs",
		MaxParallelDownloads: 5, PullTimeout: 7 * time.Second, Pinned: []string{"p*"}, Limits: limits,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("options are\n%+v, want\n%+v", got, want)
	}
	nested := manyIDs()
	nested.Nested = true
	if o := storageOptions(cfg, nested); o.MountDir != "" {
		t.Errorf("a nested node mounts in %s", o.MountDir)
	}
}

// Who has one ID only cannot give files to others.
func TestSingleID(t *testing.T) {
	cfg := testConfig(t)
	node := manyIDs()
	if o := storageOptions(cfg, node); o.IgnoreChownErrors || missingIDs(node) != "" {
		t.Errorf("many IDs: %v, %q", o.IgnoreChownErrors, missingIDs(node))
	}
	node.GIDMap = node.GIDMap[:1]
	node.IDReason = "no subordinate IDs\n    sudo usermod"
	if o := storageOptions(cfg, node); !o.IgnoreChownErrors {
		t.Error("one group ID: errors of chown are not ignored")
	}
	if got := missingIDs(node); !strings.Contains(got, "no subordinate IDs") || strings.Contains(got, "usermod") {
		t.Errorf("missing IDs: %q", got)
	}
	node.IDReason = ""
	if got := missingIDs(node); !strings.Contains(got, "has no other") {
		t.Errorf("missing IDs: %q", got)
	}
}

func TestOCIOptions(t *testing.T) {
	path := program(t, "crun")
	cfg := testConfig(t)
	cfg.Runtime.Handlers = map[string]config.Handler{
		"crun":    {Path: "crun", Args: []string{"--x"}},
		"runc":    {Path: "runc"},
		"missing": {Path: filepath.Join(path, "missing")},
	}
	cfg.Runtime.DefaultHandler = "missing"
	for driver, want := range map[string]string{
		cgroup.DriverCgroupfs: cgroup.DriverCgroupfs,
		cgroup.DriverSystemd:  cgroup.DriverCgroupfs,
		cgroup.DriverDisabled: cgroup.DriverDisabled,
	} {
		o := ociOptions(cfg, cgroup.Delegation{Driver: driver}, &rootless.Node{MonitorSocket: "/run/x/monitor.sock"})
		if o.CgroupManager != want {
			t.Errorf("with driver %s the runtime's is %s, want %s", driver, o.CgroupManager, want)
		}
		handlers := map[string]oci.Handler{
			"crun":    {Name: "crun", Path: "crun", Args: []string{"--x"}},
			"missing": {Name: "missing", Path: filepath.Join(path, "missing")}, // the default one: oci.New's to refuse
		}
		if !reflect.DeepEqual(o.Handlers, handlers) {
			t.Errorf("handlers are %v, want %v", o.Handlers, handlers)
		}
		if o.RunDir != "/run/x" || o.Conmon != cfg.Runtime.ConmonPath || o.Monitor != oci.MonitorConmon || o.MonitorSocket != "/run/x/monitor.sock" {
			t.Errorf("options: %+v", o)
		}
	}
}

func TestLookUp(t *testing.T) {
	path := program(t, "there")
	for name, want := range map[string]string{
		"there":        filepath.Join(path, "there"),
		"not-there":    "not-there",
		"/not/there":   "/not/there",
		path + "/also": path + "/also",
	} {
		if got := lookUp(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// The verbose status is made of these, by name: clients read them.
func TestInfo(t *testing.T) {
	cfg, node := testConfig(t), manyIDs()
	node.Uplink = rootless.UplinkNone
	got := info(cfg, "a reason", node, cgroup.Delegation{}, storage.Info{})
	for _, key := range []string{"uplink", "config", "node", "cgroup", "storage", "server"} {
		if got[key] == nil {
			t.Errorf("no %s", key)
		}
	}
	if server := got["server"].(map[string]any); server["degraded"] != "a reason" || server["pid"] != os.Getpid() {
		t.Errorf("server: %v", server)
	}
}

// The socket is its owner's; a dead server's is replaced.
func TestListenUnix(t *testing.T) {
	defer unix.Umask(unix.Umask(0)) // it has no say
	path := filepath.Join(t.TempDir(), "dir", "sock")
	for range 2 {
		l, err := listenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		if st, err := os.Stat(filepath.Dir(path)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("the directory: %v, %v", st.Mode(), err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := listenUnix(filepath.Join(path, "below")); err == nil {
		t.Error("a socket below a socket")
	}
}

// Flags of the daemon reach the server by name; a test ties --uplink's help to what
// there is.
func TestUplinkFlag(t *testing.T) {
	usage := newRoot().PersistentFlags().Lookup("uplink").Usage
	words := strings.FieldsFunc(usage, func(r rune) bool { return r == ',' || r == ' ' })
	words = append(words[:len(words)-2], words[len(words)-1]) // "none or host"
	if !reflect.DeepEqual(words, rootless.Uplinks()) {
		t.Errorf("--uplink says %q, want %q", words, rootless.Uplinks())
	}
}

// TestListenBesideOthers: the rights of a socket are none of what others make at the same
// time. The socket of the metrics is made while the server's parts work already.
func TestListenBesideOthers(t *testing.T) {
	dir, done := t.TempDir(), make(chan struct{})
	go func() {
		defer close(done)
		for range 500 {
			l, err := listenUnix(filepath.Join(dir, "socket"))
			if err != nil {
				t.Error(err)
				return
			}
			l.Close()
		}
	}()
	other := filepath.Join(dir, "other")
	for {
		select {
		case <-done:
			return
		default:
		}
		if err := os.Mkdir(other, 0o700); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(other)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o700 {
			<-done
			t.Fatalf("a directory that another part made has mode %o", st.Mode().Perm())
		}
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
	}
}

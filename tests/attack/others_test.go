package attack

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestOtherUsers: another user of the host gets nothing out of the daemon's directories
// and sockets, whatever the modes of the directories around them.
func TestOtherUsers(t *testing.T) {
	c := newCage(t)
	c.run(inmate{pid: ownPID, users: ownUsers()}) // which other users' IDs have to get to
	c.n.WriteHome("manifest.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {k: "+secretText+"}\n")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Around the daemon's own directories all stands open.
	for _, dir := range []string{c.n.DataDir, c.n.RunDir, exe} {
		for dir = filepath.Dir(dir); len(dir) > len("/var/tmp"); dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm()&0o005 == 0o005 {
				continue
			}
			if err := os.Chmod(dir, info.Mode().Perm()|0o055); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Chmod(dir, info.Mode().Perm()) })
		}
	}
	as := func(id string, args ...string) string {
		t.Helper()
		argv := append([]string{"--user", "--map-root-user", "--map-auto", "setpriv", "--reuid", id, "--regid", id, "--clear-groups", exe}, args...)
		out, err := exec.Command("unshare", argv...).CombinedOutput()
		if err != nil && !strings.Contains(string(out), tried) {
			t.Fatalf("as another user: %v: %s", err, out)
		}
		return string(out)
	}
	// IDs of the user's own that nothing of the test has: as good as another user's.
	c.repelled(as("60000", "escape-other", c.n.RunDir, c.n.DataDir))
	list, err := c.cri.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) == 0 {
		t.Errorf("the daemon: %v, %v", list, err)
	}
}

// lookAround reads, lists and connects to all that it finds: args are directories.
func lookAround(args []string) error {
	for _, top := range args {
		if _, err := os.Lstat(top); err != nil {
			return fmt.Errorf("it cannot be seen at all: %w", err)
		}
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrPermission):
				return fs.SkipDir
			case err != nil:
				return nil
			case d.Type()&fs.ModeSocket != 0:
				for _, network := range []string{"unix", "unixpacket"} {
					if conn, err := net.Dial(network, path); err == nil {
						conn.Close()
						got("a connection to %s", path)
					}
				}
			case d.Type().IsRegular():
				if f, err := os.Open(path); err == nil {
					f.Close()
					got("%s can be read", path)
				}
				if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
					f.Close()
					got("%s can be written", path)
				}
			}
			return nil
		})
		// Names that can be guessed, without lists.
		for _, name := range []string{"subpod.sock", "node/broker.sock", "node/supervisor.sock", "state", "pods", "containers", "storage/overlay-images/images.json", "storage/overlay-layers/layers.json", "auth.json", "logs", "play"} {
			path := filepath.Join(top, name)
			if entries, err := os.ReadDir(path); err == nil {
				got("%s shows %d names", path, len(entries))
			}
			if _, err := os.ReadFile(path); err == nil {
				got("%s can be read", path)
			}
			if conn, err := net.Dial("unix", path); err == nil {
				conn.Close()
				got("a connection to %s", path)
			}
		}
	}
	return nil
}

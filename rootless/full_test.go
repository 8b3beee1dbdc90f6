package rootless

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fullScript runs a command with a tmpfs of the given options over a directory. It is
// root of a user and mount namespace made for it; the command is the user again, with
// one ID, where user is "user". Arguments: DIR OPTIONS user|root COMMAND….
const fullScript = `
dir=$1 opts=$2 as=$3; shift 3
mount -t tmpfs -o "$opts" tmpfs "$dir" || exit 99
[ "$as" = user ] || exec "$@"
exec unshare --user --map-user=%d --map-group=%d "$@"
`

// The file system of the run directory is full after each number of files, and of
// pages, that a start makes there: the daemon says so and leaves neither processes nor
// files of the node; once there is room the next daemon starts.
func TestDiskFull(t *testing.T) {
	for _, as := range []string{"user", "root"} {
		t.Run(as, func(t *testing.T) {
			for _, limit := range []string{"nr_inodes", "size"} {
				t.Run(limit, func(t *testing.T) { fillDisk(t, as, limit) })
			}
		})
	}
}

func fillDisk(t *testing.T, as, limit string) {
	failed := 0
	step := 1
	if testing.Short() {
		step = 4 // a sample
	}
	for n := 2; n < 60; n += step {
		opts := fmt.Sprintf("mode=0700,%s=%d", limit, n)
		if limit == "size" {
			opts = fmt.Sprintf("mode=0700,size=%dk", 4*(n-1))
		}
		if startFull(t, as, opts) {
			t.Logf("%s: a start succeeds with %s, after %d that did not", as, opts, failed)
			if failed == 0 {
				t.Error("no start has failed: the limit has no effect")
			}
			return
		}
		failed++
	}
	t.Error("no start succeeds")
}

// startFull starts a daemon on a file system of the given size and reports whether it
// came to serve. A daemon that did not is started again with room.
func startFull(t *testing.T, as, opts string) bool {
	t.Helper()
	base := t.TempDir()
	mount, err := os.MkdirTemp(os.Getenv("XDG_RUNTIME_DIR"), "f")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(mount)
	c := Config{RunDir: filepath.Join(mount, "run"), DataDir: filepath.Join(base, "data"), Uplink: UplinkNone,
		Server: []string{filepath.Join(base, "server.sh")}}
	if err := os.Mkdir(c.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	installServer(t, c, "v1")
	script := fmt.Sprintf(fullScript, os.Getuid(), os.Getgid())
	// What is left is looked at from inside, where the file system is.
	const look = `dir=$1 opts=$2; shift 2
"$@" & pid=$!
trap 'kill -TERM $pid' TERM
wait $pid; code=$?
[ $code -lt 128 ] || { wait $pid; code=$?; }
echo "code=$code left=$(ls -A "$dir/run" 2>/dev/null | tr '\n' ' ')"
[ -e "$dir/run" ] || echo "no run directory"
exit $code
`
	d := startDaemon(t, c, "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "--", mount, opts, as,
		"sh", "-c", look, "--", mount, opts)
	report := filepath.Join(c.DataDir, "server.json")
	served := false
	for !served {
		select {
		case <-d.done:
			checkFull(t, opts, d)
			if _, err := os.Stat(report); err == nil {
				t.Errorf("%s: a server has come up in a node that failed", opts)
			}
			next := startDaemon(t, c, "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "--", mount, "mode=0700", as)
			next.server(0)
			if code := next.stop(); code != 0 {
				t.Errorf("%s: the next daemon ended with %d", opts, code)
			}
			return false
		default:
			_, err := os.Stat(report)
			served = err == nil
			time.Sleep(5 * time.Millisecond)
		}
	}
	d.stop()
	return true
}

// checkFull looks at what a daemon said that found the disk full, and at what is left.
func checkFull(t *testing.T, opts string, d *daemon) {
	t.Helper()
	log := d.log.String()
	if !strings.Contains(log, "no space left on device") {
		t.Errorf("%s: the daemon does not say that the disk is full:\n%s", opts, log)
	}
	_, rest, found := strings.Cut(log, "code=")
	code, left, _ := strings.Cut(strings.TrimSpace(rest), " left=")
	left, _, _ = strings.Cut(left, "\n")
	if n, err := strconv.Atoi(code); !found || err != nil || n == 0 {
		t.Errorf("%s: exit code %q:\n%s", opts, code, log)
	}
	if left = strings.TrimSpace(left); left != "" && left != fileLock {
		t.Errorf("%s: left in the run directory: %s", opts, left)
	}
}

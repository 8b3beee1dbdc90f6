package rootless

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// enterPart is "subpod nsenter". Arguments: RUNDIR COMMAND….
func enterPart(args []string) int {
	code, err := Enter(context.Background(), args[0], args[1:], EnterOptions{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 125
	}
	return code
}

// A daemon in the node of another one: the same IDs and network, but mounts and
// processes of its own.
func testNestedInNode(t *testing.T, outer *daemon) {
	c := testConfig(t)
	d := startDaemon(t, c, executable(t), "part-enter", outer.RunDir)
	r := d.server(0)
	if !r.Node.Nested || !r.Node.Inside || r.Node.NetNS != "" || r.Node.ChildPID != 1 {
		t.Errorf("nested node: %+v", r.Node)
	}
	o := outer.load()
	if r.Node.Identity == o.Identity || fmt.Sprint(r.Node.UIDMap) != fmt.Sprint(o.UIDMap) {
		t.Errorf("nested node: %+v, outer node: %+v", r.Node, o)
	}
	out, code := in(t, outer, EnterOptions{}, executable(t), "part-enter", c.RunDir, executable(t), "part-report", c.RunDir)
	if code != 0 || !strings.Contains(out, `"Identity":"`+r.Node.Identity+`"`) {
		t.Errorf("entering the nested node: exit code %d, %s", code, out)
	}
	if code := d.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// With one ID, as "unshare -r" gives it.
func TestNestedUnshare(t *testing.T) {
	d := startDaemon(t, testConfig(t), "unshare", "--map-root-user")
	r := d.server(0)
	if !r.Node.Nested || r.Node.ChildPID != 1 || len(r.Node.UIDMap) != 1 || r.Node.UIDMap[0].Size != 1 {
		t.Errorf("nested node: %+v", r.Node)
	}
	if r.MountNS == ownNS(t, "mnt") {
		t.Error("the nested node has no mount namespace of its own")
	}
	checkNestedEnd(t, d, 0)
}

// maskProc makes a root file system of the directories that the daemon needs, enters
// it, covers a file of /proc, and runs a command as root of another user namespace,
// which cannot uncover it. A second /proc anywhere (a chroot has one) would show what
// is covered, and the kernel would mount a fresh one (mount_namespaces(7)): the new
// root has none.
const maskProc = `
set -e
root=/mnt
mount -t tmpfs tmpfs "$root"
for dir in /usr /etc /dev /proc /sys "$SUBPOD_TEST_DIR" "$XDG_RUNTIME_DIR" "$@"; do
	[ "$dir" != -- ] || break
	mkdir -p "$root$dir" && mount --rbind "$dir" "$root$dir"
done
while [ "$1" != -- ]; do shift; done; shift
for dir in /bin /sbin /lib /lib32 /lib64; do
	if [ -L $dir ]; then ln -s "$(readlink $dir)" "$root$dir"
	elif [ -d $dir ]; then mkdir "$root$dir" && mount --rbind $dir "$root$dir"; fi
done
mkdir "$root/run" "$root/opt" "$root/tmp" "$root/old"
cd "$root" && pivot_root . old && cd / && umount -l /old && rmdir /old
mount --bind /dev/null /proc/swaps
exec unshare --map-root-user --mount "$@"
`

// In a container that masks a part of /proc no fresh one can be mounted, hence
// there is no PID namespace. A clean stop still leaves nothing behind.
func TestNestedMaskedProc(t *testing.T) {
	d := startDaemon(t, testConfig(t), "unshare", "--map-root-user", "--mount", "sh", "-c", maskProc, "sh",
		filepath.Dir(executable(t)), "--")
	r := d.server(0)
	if !r.Node.Nested || r.Node.ChildPID == 1 {
		t.Errorf("nested node: %+v", r.Node)
	}
	d.eventually("why there is no PID namespace", func() bool { return strings.Contains(d.log.String(), errNoProc.Error()) })
	leftover := readPID(t, filepath.Join(d.DataDir, "leftover"))
	if err := unix.Kill(r.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if second := d.server(r.PID); second.Node.Identity != r.Node.Identity {
		t.Errorf("identity changed from %s to %s though the node is the same", r.Node.Identity, second.Node.Identity)
	}
	checkNestedEnd(t, d, leftover)
}

func checkNestedEnd(t *testing.T, d *daemon, leftover int) {
	t.Helper()
	if code := d.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if b, _ := os.ReadFile(filepath.Join(d.DataDir, "stopped")); string(b) != "v1\n" {
		t.Errorf("servers stopped in good order: %q, want v1", b)
	}
	for deadline := time.Now().Add(time.Minute); leftover != 0 && unix.Kill(leftover, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d has outlived the node", leftover)
		}
	}
}

package attack

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/pkg/landlock"
	"github.com/subpod/subpod/tests/node"
)

// takenOver stands for a fuse-overlayfs that what it reads has taken over: it writes into
// the container's upper directory what it could do, and goes on as fuse-overlayfs.
const takenOver = `#!/bin/bash
for a; do case $a in *upperdir=*)
	upper=${a##*upperdir=}; upper=${upper%%%%,*}
	lower=${a##*lowerdir=}; lower=${lower%%%%,*}; lower=${lower%%%%:*} ;;
esac; done
if [ -n "$upper" ]; then
	{
		echo "the program runs"
		cat %[1]s/.ssh/id_ed25519 && echo "it has read"
		cat /proc/$PPID/root%[1]s/.ssh/id_ed25519 && echo "it has read by its parent"
		cat /proc/$PPID/environ && echo "it has read the server's environment"
		ls %[2]s && echo "it has listed the run directory"
		echo x >%[1]s/planted && echo "it has written to the home"
		echo x >%[3]s/planted && echo "it has written to the data directory"
		echo x >$lower/planted && echo "it has written to a layer"
		kill -0 $PPID && echo "it has signalled the server"
		: </dev/tcp/127.0.0.1/%[4]s && echo "it has connected"
		exec 9<>/dev/zero && echo "it has opened a device"
		unshare -m --propagation unchanged true && echo "it has made a mount namespace"
		unshare -U true && echo "it has made a user namespace"
		/usr/sbin/chroot / /bin/true && echo "it has changed its root"
	} >>$upper/findings 2>/dev/null
fi
exec fuse-overlayfs "$@"
`

// TestFuseIsConfined: a fuse-overlayfs that was taken over reaches nothing but its own
// overlay; and the real one works so.
func TestFuseIsConfined(t *testing.T) {
	if landlock.Version() < 6 {
		t.Skip("the kernel's Landlock has no scopes (Linux 6.12)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	n := node.Prepare(t, node.Options{})
	n.WriteHome(".ssh/id_ed25519", houseSecret)
	n.WriteHome("tools/taken-over", fmt.Sprintf(takenOver, n.Home, n.RunDir, n.DataDir, port))
	program := filepath.Join(n.Home, "tools/taken-over")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	n.WriteHome(".config/subpod/subpod.toml", fmt.Sprintf("[storage]\ndriver = \"fuse-overlayfs\"\nmount_program = %q\n", program))
	n.Run()
	n.Crictl("pull", node.Busybox)
	// All kinds of changes: whiteouts, owners, attributes, links, moves, special files.
	out, err := n.Subpod("run", "--rm", "--cap-add", "MKNOD", node.Busybox, "sh", "-ec", `cat /findings
cp /bin/busybox /set && chown 7:8 /set && chmod 4755 /set && [ "$(stat -c %u:%g:%a /set)" = 7:8:4755 ]
rm /etc/passwd && [ ! -e /etc/passwd ]
mv /etc/group /moved && ln /moved /hard && ln -s /moved /link && cat /link >/dev/null
mkdir -p /d/e && mv /d /d2 && rmdir /d2/e && mkfifo /d2/fifo
rm -rf /home && mkdir /home && [ -z "$(ls /home)" ]
echo more >>/etc/shadow && truncate -s 5 /etc/shadow && touch -d 2020-01-01 /etc/shadow
echo changed`)
	if err != nil || !strings.Contains(out, "changed") {
		t.Errorf("the overlay does not work: %v:\n%s", err, out)
	}
	if !strings.Contains(out, "the program runs") || strings.Contains(out, "it has ") || strings.Contains(out, houseSecret) {
		t.Errorf("fuse-overlayfs has got through:\n%s", out)
	}
}

package leak

import (
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Each kind of thing that Host looks at is left for a moment, and must be seen.
func TestHostSeesWhatIsLeft(t *testing.T) {
	before := Host()
	has := func(kind, words string) bool {
		for name, text := range Host() {
			if _, was := before[name]; !was && strings.HasPrefix(name, kind) && strings.Contains(name+" "+text, words) {
				return true
			}
		}
		return false
	}

	cmd := exec.Command("sleep", "97531")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !has("process", "97531") {
		t.Error("a process was not seen")
	}
	cmd.Process.Kill()
	cmd.Wait()

	// A child that listens; the test's own sockets are its own affair.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "97532")
	child.ExtraFiles = []*os.File{file}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if !has("port", "tcp 0100007F:"+port) {
		t.Error("a listening port was not seen")
	}
	child.Process.Kill()
	child.Wait()
	file.Close()
	l.Close()

	dir, err := os.MkdirTemp("/var/tmp", "subpod-leak")
	if err != nil {
		t.Fatal(err)
	}
	if !has("file", dir) {
		t.Error("a temporary directory was not seen")
	}
	os.Remove(dir)

	if left := Left(before, func() Snapshot { return Host() }); len(left) > 0 {
		t.Errorf("seen after the end: %v", left)
	}
}

// The same script as in a node, run in a namespace that the test has to itself.
func TestNodeSeesWhatIsLeft(t *testing.T) {
	holder := exec.Command("unshare", "--map-root-user", "--mount", "--net", "--pid", "--mount-proc", "--fork", "--kill-child", "sleep", "86420")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer holder.Wait()
	defer holder.Process.Kill()
	var inner string
	for inner == "" {
		for _, p := range descendants(os.Getpid()) {
			if p.binary == "sleep" {

				inner = strconv.Itoa(p.pid)
			}
		}
	}
	inside := Inside("nsenter", "-t", inner, "-U", "-m", "-n", "-p", "--preserve-credentials")
	look := func() Snapshot {
		s, err := Node(inside, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := look()
	if _, ok := before["process sleep, number 1"]; !ok {
		t.Fatalf("the namespace's own process is missing: %v", before)
	}
	if left := Left(before, look); len(left) > 0 {
		t.Fatalf("the second look differs: %v", left)
	}
	script := `mount -t tmpfs leaktest /mnt; ip link add leak0 type veth peer name leak1
		nft add table ip leaktable; sleep 86421 >/dev/null 2>&1 </dev/null & `
	if out, err := inside("sh", "-c", script); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// It stays for good: no need to wait long, but for the shell's child to be a sleep.
	left := ""
	for deadline := time.Now().Add(time.Minute); !strings.Contains(left, "process sleep, number 2") && time.Now().Before(deadline); {
		left = strings.Join(leftAfter(0, before, look), "\n")
	}
	for _, want := range []string{"mount /mnt (tmpfs /)", "link leak0", "link leak1", "rule table ip leaktable", "process sleep, number 2"} {
		if !strings.Contains(left, want) {
			t.Errorf("%q was not seen in:\n%s", want, left)
		}
	}
}

// What others mount, on the host or into the node, is no leak of the test.
func TestMountsOfOthers(t *testing.T) {
	const mountinfo = `36 35 0:40 / /run/user/1000/n1/subpod/pods/a/shm rw - tmpfs tmpfs rw
37 35 0:41 / /run/user/1000/n12/shm rw - tmpfs tmpfs rw
38 35 0:42 / /home/me/sshfs rw - fuse.sshfs me@host: rw,user_id=1000,group_id=1000
39 35 0:43 / /mnt/run/user/1000/n1 rw - tmpfs tmpfs rw
`
	s := Snapshot{}
	s.hostMounts(mountinfo, []string{"/run/user/1000/n1"})
	if len(s) != 1 {
		t.Errorf("of four mounts one is below the directory, found %v", s)
	}
	node := Snapshot{}
	node.section("mounts", `50 40 0:44 / /media/usb rw shared:7 master:3 - vfat /dev/sdb1 rw
51 40 0:45 / /run/subpod/pods/a/shm rw shared:8 - tmpfs tmpfs rw
52 40 0:46 /dir /run/subpod/bind rw shared:9 master:3 - ext4 /dev/sda1 rw
`, "/run/subpod")
	if len(node) != 2 {
		t.Errorf("of three mounts two are the node's, found %v", node)
	}
}

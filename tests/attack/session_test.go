package attack

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// TestSessionOfTheUser: what programs of the user's session have without a path, such as
// abstract sockets of a session bus (the class of CVE-2020-15257) and shared memory, is
// out of reach for containers, also for those with the node's namespaces.
func TestSessionOfTheUser(t *testing.T) {
	c := newCage(t)
	name := "@subpod-attack-" + strconv.Itoa(os.Getpid())
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, secretText)
			conn.Close()
		}
	}()
	key := 0x5ec40000 + os.Getpid()&0xffff
	shm, err := unix.SysvShmGet(key, 4096, unix.IPC_CREAT|unix.IPC_EXCL|0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.SysvShmCtl(shm, unix.IPC_RMID, nil) }()
	memory, err := unix.SysvShmAttach(shm, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	copy(memory, secretText)
	if err := unix.SysvShmDetach(memory); err != nil {
		t.Fatal(err)
	}
	named := filepath.Join("/dev/shm", name[1:])
	if err := os.WriteFile(named, []byte(secretText), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(named)
	unconfined := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	for what, i := range map[string]inmate{
		"own": {pid: ownPID}, "node's network": {pid: ownPID, net: onNode}, "node's": {pid: onNode, net: onNode, ipc: onNode},
		"node's, privileged": {pid: onNode, net: onNode, ipc: onNode, privileged: true}, "node's, unconfined": {pid: onNode, net: onNode, ipc: onNode, seccomp: unconfined},
	} {
		t.Run(what, func(t *testing.T) {
			c := c.in(t)
			c.escape(c.run(i), "session", name, strconv.Itoa(key))
		})
	}
}

// trySession connects to an abstract socket and attaches shared memory: args are the
// name and the key.
func trySession(args []string) error {
	if conn, err := net.Dial("unix", args[0]); err == nil {
		b := make([]byte, 100)
		n, _ := conn.Read(b)
		got("the abstract socket says: %s", b[:n])
	}
	if b, err := os.ReadFile(filepath.Join("/dev/shm", args[0][1:])); err == nil {
		got("/dev/shm: %s", b)
	}
	key, err := strconv.ParseInt(args[1], 0, 32)
	if err != nil {
		return err
	}
	if id, err := unix.SysvShmGet(int(key), 0, 0); err == nil {
		if memory, err := unix.SysvShmAttach(id, 0, unix.SHM_RDONLY); err == nil {
			got("shared memory: %s", bytes.TrimRight(memory[:64], "\x00"))
		}
		got("shared memory %d", id)
	}
	if b, err := os.ReadFile("/proc/sysvipc/shm"); err == nil && strings.Contains(string(b), strconv.FormatInt(key, 10)) {
		got("/proc/sysvipc/shm shows it: %s", b)
	}
	return nil
}

// TestKeyrings: keys of the session that the daemon was started in do not come to
// containers, whatever calls they may make.
func TestKeyrings(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n := node.Start(t, node.Options{Config: node.Bridge, Prefix: []string{exe, "escape-with-key"}})
	c := &cage{T: t, n: n, cri: n.CRI(), secret: filepath.Join(n.Home, "secret")}
	c.pull(node.Busybox)
	unconfined := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	for name, i := range map[string]inmate{
		"unconfined": {pid: ownPID, seccomp: unconfined}, "privileged": {pid: ownPID, privileged: true}, "own users": {pid: ownPID, seccomp: unconfined, users: ownUsers()},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			c.escape(c.run(i), "keys") // what joins
			i.command = []string{"sh", "-c", "/attack escape-keys >/tmp/out 2>&1; while :; do sleep 0.1; done"}
			id := c.run(i)
			var out string
			node.Eventually(t, "the first process has tried", func() error {
				if out = c.exec(id, "cat", "/tmp/out"); !strings.Contains(out, tried) {
					return fmt.Errorf("it says %q", out)
				}
				return nil
			})
			c.repelled(out)
		})
	}
}

const keyName = "subpod-attack"

// withKey executes a command in a session with a key.
func withKey(args []string) error {
	runtime.LockOSThread()
	if _, err := unix.KeyctlJoinSessionKeyring("subpod-attack-session"); err != nil {
		return err
	}
	if _, err := unix.AddKey("user", keyName, []byte(secretText), unix.KEY_SPEC_SESSION_KEYRING); err != nil {
		return err
	}
	return unix.Exec(args[0], args, os.Environ())
}

func tryKeys([]string) error {
	runtime.LockOSThread()
	for _, ring := range []int{unix.KEY_SPEC_SESSION_KEYRING, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_USER_SESSION_KEYRING, unix.KEY_SPEC_PROCESS_KEYRING} {
		id, err := unix.KeyctlSearch(ring, "user", keyName, 0)
		if err != nil {
			continue
		}
		b := make([]byte, 100)
		n, _ := unix.KeyctlBuffer(unix.KEYCTL_READ, id, b, 0)
		got("a key of the session, in ring %d: %s", ring, b[:max(n, 0)])
	}
	if id, err := unix.RequestKey("user", keyName, "", 0); err == nil {
		got("a key of the session: %d", id)
	}
	return nil
}

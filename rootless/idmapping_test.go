package rootless

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A node with one ID needs neither newuidmap nor getsubids.
func TestSingleID(t *testing.T) {
	c := testConfig(t)
	c.IDMapping = IDsSingle
	d := startDaemon(t, c, "env", "PATH="+withoutMappers(t))
	r := d.server(0)
	want := fmt.Sprint([]IDMap{{Container: 0, Host: uint32(os.Getuid()), Size: 1}}, []IDMap{{Container: 0, Host: uint32(os.Getgid()), Size: 1}})
	if got := fmt.Sprint(r.Node.UIDMap, r.Node.GIDMap); got != want || !r.Node.SingleID() {
		t.Errorf("ID maps %s, want %s", got, want)
	}
	if r.Node.NetNS == "" || r.NodeNetNS == r.NetNS {
		t.Errorf("no node network namespace: %+v", r.Node)
	}
	for _, kv := range r.Env {
		if strings.HasPrefix(kv, "GETSUBIDS") || strings.HasPrefix(kv, "PATH="+d.RunDir) {
			t.Errorf("the server got %s", kv)
		}
	}
	const said = "one user and one group ID"
	d.eventually("the log to come through its pipe", func() bool { return strings.Contains(d.log.String(), said) })
	if n := strings.Count(d.log.String(), said); n != 1 {
		t.Errorf("said %d times in the log that there is only one ID", n)
	}
	if out, code := in(t, d, EnterOptions{}, "id", "-u"); code != 0 || strings.TrimSpace(out) != "0" {
		t.Errorf("entering: exit code %d, %s", code, out)
	}
	if code := d.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// withoutMappers is a PATH with all of the system's programs but those that map
// IDs.
func withoutMappers(t *testing.T) string {
	dir := t.TempDir()
	for _, from := range []string{"/sbin", "/usr/sbin", "/bin", "/usr/bin"} {
		entries, err := os.ReadDir(from)
		if err != nil {
			continue
		}
		for _, e := range entries {
			switch e.Name() {
			case linkGetSubIDs, linkNewUIDMap, linkNewGIDMap:
			default:
				os.Symlink(from+"/"+e.Name(), dir+"/"+e.Name())
			}
		}
	}
	return dir
}

// With UplinkHost the node's network is the one around it.
func TestUplinkHost(t *testing.T) {
	c := testConfig(t)
	c.Uplink = UplinkHost
	d := startDaemon(t, c)
	r := d.server(0)
	if r.Node.NetNS != "" || r.Node.PortSocket != "" || r.Node.Uplink != UplinkHost || r.NetNS != ownNS(t, "net") {
		t.Errorf("node: %+v, server's network %d", r.Node, r.NetNS)
	}
	if code := d.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Root of a container without CAP_SYS_ADMIN makes a user namespace with the same
// IDs: here, root of a user namespace that has given up the capability. The host
// has /dev/net/tun, so the uplink is the usual one.
func TestContainerRoot(t *testing.T) {
	d := startDaemon(t, testConfig(t), "unshare", "--map-root-user", "--map-auto",
		"setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", "--")
	r := d.server(0)
	if r.Node.Nested || r.Node.IDMapping != IDsOwn || r.Node.SingleID() {
		t.Errorf("node: %+v", r.Node)
	}
	for _, m := range [][]IDMap{r.Node.UIDMap, r.Node.GIDMap} {
		for _, line := range m {
			if line.Container != line.Host {
				t.Errorf("ID %d is mapped to %d", line.Container, line.Host)
			}
		}
	}
	if err := unix.Kill(d.cmd.Process.Pid, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if code := d.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

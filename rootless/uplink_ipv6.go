package rootless

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/rootless-containers/rootlesskit/v3/pkg/messages"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network"
	"golang.org/x/sys/unix"
)

// What slirp4netns serves by IPv6 (slirp4netns(1), --enable-ipv6), and pasta is told to serve.
const (
	tapAddress6 = "fd00::100"
	tapBits6    = 64
	tapGateway6 = "fd00::2"
	tapDNS6     = "fd00::3"
)

// resolveIPv6 decides whether the uplink leads to the outside by IPv6, and says in NoIPv6
// why it does not. Whether the host has a way out is no matter: it may get one.
func (c Config) resolveIPv6(h Host) Config {
	asked := c.IPv6
	c.IPv6, c.NoIPv6 = false, ""
	switch _, err := os.Stat(h.File("/proc/net/if_inet6")); {
	case c.Uplink == UplinkGvisor:
		c.NoIPv6 = "gvisor-tap-vsock has no IPv6"
	case c.Uplink != UplinkSlirp && c.Uplink != UplinkPasta:
	case !asked:
		c.NoIPv6 = "node.uplink_ipv6 is false"
	case err != nil:
		c.NoIPv6 = "this kernel has no IPv6"
	case c.faulty:
		c.NoIPv6 = "it has known holes, and IPv6 leads to more of them"
	default:
		c.IPv6 = true
	}
	return c
}

// nowhere are the IPv6 addresses that lead to no other machine, but, by the sockets of the
// uplink's program, to the host itself: ::1 and ::, and 127.0.0.1 and 0.0.0.0 as
// ::ffff:a.b.c.d, which the kernel takes for IPv4 (ipv6(7)). No router forwards them; the
// node does, where a default route has them and a pod makes its packets itself.
var nowhere = []string{"::/96", "::ffff:0:0/96"}

// tapChild is the node's end of slirp4netns and pasta: it sets up IPv6 beside what the driver
// does.
type tapChild struct {
	network.ChildDriver
	c Config
}

// ConfigureNetworkChild implements network.ChildDriver.
func (t tapChild) ConfigureNetworkChild(msg *messages.ParentInitNetworkDriverCompleted, netns string) (string, error) {
	dev, err := t.ChildDriver.ConfigureNetworkChild(msg, netns)
	if err != nil || !t.c.IPv6 {
		return dev, err
	}
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := enterNetNS(netns); err != nil {
			failed <- err
			return
		}
		failed <- t.configureIPv6(dev)
	}()
	if err := <-failed; err != nil {
		t.c.Log.Warn("pods have no way out by IPv6", "error", err)
	}
	return dev, nil
}

func enterNetNS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("setns", unix.Setns(int(f.Fd()), unix.CLONE_NEWNET))
}

// configureIPv6 runs on a thread in the node network namespace.
func (t tapChild) configureIPv6(dev string) error {
	// Nobody has to tell the node its routes, which whoever sends them could lead elsewhere.
	sysctl := func(device, name, value string) error {
		return os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", device, name), []byte(value), 0o644)
	}
	if err := sysctl("default", "accept_ra", "0"); err != nil {
		return err
	}
	var batch []string
	for _, p := range nowhere {
		batch = append(batch, "route replace unreachable "+p)
	}
	if t.c.Uplink == UplinkSlirp { // pasta sets up its tap itself, each time that it starts
		// What an advertisement has brought so far goes with disable_ipv6.
		for _, s := range [][2]string{{"disable_ipv6", "1"}, {"accept_ra", "0"}, {"disable_ipv6", "0"}} {
			if err := sysctl(dev, s[0], s[1]); err != nil {
				return err
			}
		}
		batch = append(batch, fmt.Sprintf("address replace %s/%d dev %s nodad", tapAddress6, tapBits6, dev),
			fmt.Sprintf("route replace default via %s dev %s", tapGateway6, dev))
	}
	cmd := exec.Command("ip", "-6", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(batch, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%q by ip -6 -batch: %w: %s", batch, err, bytes.TrimSpace(out))
	}
	return nil
}

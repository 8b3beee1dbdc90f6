package rootless

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/messages"
	"golang.org/x/sys/unix"
)

// pasta is the uplink of that name, a rootlesskit network driver. It serves the same
// addresses as slirp4netns. Unlike rootlesskit's own it stays our child, is started
// again when it ends, and when the host's DNS servers change, which it reads only
// when it starts. Each start makes the tap anew; pods and their bridge do not notice.
type pasta struct{ tapUplink }

func newPasta(c Config) (pasta, error) {
	u, err := newTapUplink(UplinkPasta, c.PastaBinary, c)
	return pasta{u}, err
}

// ConfigureNetwork implements network.ParentDriver.
func (p pasta) ConfigureNetwork(childPID int, stateDir, netns string) (*messages.ParentInitNetworkDriverCompleted, func() error, error) {
	pidFile := filepath.Join(stateDir, "pasta.pid")
	// No implicit forwarding in either direction: host ports are the port driver's,
	// and the host's loopback is not the pods'.
	args := []string{"--foreground", "--pid", pidFile, "--config-net",
		"--ns-ifname", slirpTap, "--mtu", strconv.Itoa(p.mtu),
		"--address", slirpAddress, "--netmask", strconv.Itoa(slirpBits), "--gateway", slirpGateway, "--dns-forward", slirpDNS,
		"--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"}
	if p.ipv6 {
		// Nor by DHCP or advertisements: it configures the tap itself.
		args = append(args, "--address", tapAddress6, "--gateway", tapGateway6, "--dns-forward", tapDNS6, "--no-ra", "--no-dhcpv6")
	} else {
		args = append(args, "--ipv4-only")
	}
	if p.disableHostLoopback {
		args = append(args, "--no-map-gw")
	}
	args = append(args, fmt.Sprintf("--userns=/proc/%d/ns/user", childPID), "--netns="+netns)
	stop, err := keepHelper(p.log, stateDir, p.binary, func(ctx context.Context) (*exec.Cmd, error) { return p.start(ctx, pidFile, args) })
	if err != nil {
		return nil, stop, err
	}
	return p.configuration(), p.followDNS(stateDir, stop), nil
}

// start returns once pasta has configured the tap, which is when it writes its PID.
func (p pasta) start(ctx context.Context, pidFile string, args []string) (*exec.Cmd, error) {
	if err := os.Remove(pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	way := HostWayOut()
	cmd := exec.CommandContext(ctx, p.binary, args...)
	said := &tail{next: debugWriter{p.log, UplinkPasta}}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start pasta: %w", err)
	}
	for deadline := time.Now().Add(uplinkReadyTimeout); ; time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(pidFile); err == nil && len(b) > 0 {
			go p.follow(ctx, cmd, way)
			return cmd, nil
		}
		// Ended and not yet waited for: a zombie has no memory.
		statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", cmd.Process.Pid))
		if ended := err != nil || string(statm) == "0 0 0 0 0 0 0\n"; ended || time.Now().After(deadline) || ctx.Err() != nil {
			_ = cmd.Process.Kill()
			return nil, fmt.Errorf("%v does not get ready: %w: %s", cmd.Args, cmd.Wait(), said)
		}
	}
}

// follow ends pasta when it has to read anew what it reads only when it starts, so that it
// is started again: the host's DNS servers have changed, or there is a way out by IPv4 or
// IPv6 that there was not. One that is gone may come back.
func (p pasta) follow(ctx context.Context, cmd *exec.Cmd, then WayOut) {
	for tick := time.NewTicker(dnsInterval); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		now := HostWayOut()
		if now.DNS != "" && now.DNS != then.DNS || now.IPv4 && !then.IPv4 || now.IPv6 && !then.IPv6 && p.ipv6 {
			p.log.Info("the host's network has changed: pasta is started again", "servers", now.DNS, "ipv4", now.IPv4, "ipv6", now.IPv6)
			tick.Stop()
			_ = cmd.Process.Kill()
			return
		}
		if cmd.Process.Signal(syscall.Signal(0)) != nil {
			tick.Stop()
			return // it has ended by itself
		}
	}
}

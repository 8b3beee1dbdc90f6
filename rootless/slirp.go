package rootless

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/messages"
	"github.com/rootless-containers/rootlesskit/v3/pkg/network/parentutils"
	"golang.org/x/sys/unix"
)

// uplinkReadyTimeout is how long it may take to open the tap.
const uplinkReadyTimeout = 10 * time.Second

// slirp is the slirp4netns uplink, a rootlesskit network driver. Unlike
// rootlesskit's own it starts a slirp4netns that has died again: tap, address
// and routes stay in the node network namespace, so pods only see a pause.
type slirp struct{ tapUplink }

func newSlirp(c Config) (slirp, error) {
	u, err := newTapUplink(UplinkSlirp, c.SlirpBinary, c)
	return slirp{u}, err
}

// ConfigureNetwork implements network.ParentDriver.
func (s slirp) ConfigureNetwork(childPID int, stateDir, netns string) (*messages.ParentInitNetworkDriverCompleted, func() error, error) {
	if err := parentutils.PrepareTap(childPID, netns, slirpTap); err != nil {
		return nil, nil, fmt.Errorf("make %s in the node network namespace: %w", slirpTap, err)
	}
	args := []string{"--mtu", strconv.Itoa(s.mtu), "--ready-fd", "3"}
	if s.disableHostLoopback {
		args = append(args, "--disable-host-loopback")
	}
	if s.ipv6 {
		args = append(args, "--enable-ipv6")
	}
	// No sandbox: it does not work with a namespace given by path (slirp4netns
	// issue 317).
	userns := fmt.Sprintf("/proc/%d/ns/user", childPID)
	args = append(args, "--userns-path="+userns, "--netns-type=path", netns, slirpTap)
	keep := func(args []string) (func() error, error) {
		return keepHelper(s.log, stateDir, s.binary, func(ctx context.Context) (*exec.Cmd, error) { return s.start(ctx, args, userns, netns) })
	}
	// It reads packets of containers, so what they could make of it is limited to its
	// system calls, where it was built with libseccomp.
	stop, err := keep(append([]string{"--enable-seccomp"}, args...))
	if err != nil {
		s.log.Warn("slirp4netns does not start with a seccomp filter; it is tried without", "error", err)
		stop, err = keep(args)
	}
	if err != nil {
		return nil, stop, err
	}
	return s.configuration(), s.followDNS(stateDir, stop), nil
}

// start returns once slirp4netns says that it serves the tap.
func (s slirp) start(ctx context.Context, args []string, namespaces ...string) (*exec.Cmd, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, s.binary, args...)
	confine(cmd, namespaces...)
	said := &tail{next: debugWriter{s.log, UplinkSlirp}}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("start slirp4netns: %w", err)
	}
	if err := r.SetReadDeadline(time.Now().Add(uplinkReadyTimeout)); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	// It writes "1", or ends and closes the pipe.
	if n, err := r.Read(make([]byte, 1)); n == 0 {
		_ = cmd.Process.Kill()
		waitErr := cmd.Wait()
		return nil, fmt.Errorf("%v does not get ready (%w): %w: %s", cmd.Args, err, waitErr, said)
	}
	return cmd, nil
}

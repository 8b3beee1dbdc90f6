package rootless

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// What the host can lack. Each Problem wraps one of them.
var (
	ErrNoIDMapper     = errors.New("newuidmap and newgidmap cannot be used")
	ErrNoSubIDs       = errors.New("no subordinate IDs")
	ErrNoUserNS       = errors.New("user namespaces are not allowed")
	ErrNoTun          = errors.New("/dev/net/tun cannot be used")
	ErrMissingProgram = errors.New("program not found")
)

// Problem is one thing that keeps the node from being made on this host.
type Problem struct {
	Err  error  // one of the sentinels above
	What string // what was found
	Fix  string // the commands that change it, one a line
}

// Error implements error: what was found, and what to do.
func (p *Problem) Error() string {
	s := p.Err.Error() + ": " + p.What
	for line := range strings.Lines(p.Fix) {
		s += "\n    " + strings.TrimRight(line, "\n")
	}
	return s
}

// Unwrap returns the sentinel.
func (p *Problem) Unwrap() error { return p.Err }

// Preflight looks for everything that would make Run fail on this host, without
// changing anything. The error joins all Problems; nil means that none was seen.
func Preflight(c Config) error {
	c, err := c.resolve()
	if err != nil {
		return err
	}
	var problems []error
	for _, check := range []func(Config) *Problem{checkUserNS, checkPrograms, checkIDMapper, checkSubIDs, checkTun} {
		if p := check(c); p != nil {
			problems = append(problems, p)
		}
	}
	return errors.Join(problems...)
}

// explainStart adds what the host says about a node that could not be made.
func explainStart(c Config, err error) error {
	err = fmt.Errorf("the node has ended: %w", err)
	if p := probeUserNS(c); p != nil {
		return errors.Join(err, p)
	}
	return err
}

func checkPrograms(c Config) *Problem {
	need := map[string]string{"ip": "iproute2", "nsenter": "util-linux", "mount": "mount"}
	switch c.Uplink {
	case UplinkSlirp:
		need[c.SlirpBinary] = "slirp4netns"
	case UplinkPasta:
		need[c.PastaBinary] = "passt"
	}
	var missing, packages []string
	for name, pkg := range need {
		if _, err := exec.LookPath(name); err != nil {
			missing, packages = append(missing, name), append(packages, pkg)
		}
	}
	if missing == nil {
		return nil
	}
	return &Problem{ErrMissingProgram, strings.Join(missing, ", "),
		"install the packages (Debian's names): sudo apt install " + strings.Join(packages, " ")}
}

func checkTun(c Config) *Problem {
	if c.Uplink == UplinkNone {
		return nil
	}
	const dev = "/dev/net/tun"
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		f.Close()
		return nil
	}
	fix := "sudo modprobe tun"
	if errors.Is(err, os.ErrPermission) {
		fix = "sudo chmod 0666 " + dev
	}
	return &Problem{ErrNoTun, fmt.Sprintf("uplink %s needs it: %v", c.Uplink, err), fix}
}

// checkIDMapper makes sure that the two programs are there and may do their
// work: they need to be setuid root or to have a file capability, and to be
// allowed to use it.
func checkIDMapper(Config) *Problem {
	for _, name := range []string{"newuidmap", "newgidmap"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return &Problem{ErrNoIDMapper, name + " is not installed",
				"install the package uidmap (Debian), shadow-utils (Fedora) or shadow (others): sudo apt install uidmap"}
		}
		st, err := os.Stat(path)
		if err != nil {
			return &Problem{ErrNoIDMapper, err.Error(), ""}
		}
		if st.Mode()&os.ModeSetuid != 0 && ownerOf(st) == 0 {
			continue
		}
		if n, err := unix.Getxattr(path, "security.capability", nil); err == nil && n > 0 {
			continue
		}
		return &Problem{ErrNoIDMapper, path + " is neither setuid root nor has file capabilities",
			"sudo chmod u+s " + path}
	}
	if v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && v == 1 {
		return &Problem{ErrNoIDMapper, "this process has no_new_privs set, under which setuid programs are without effect",
			"start the daemon without it (systemd: NoNewPrivileges=no; containers: allowPrivilegeEscalation: true)"}
	}
	return nil
}

package rootless

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What the host can lack. Each Problem wraps one of them.
var (
	ErrNoIDMapper     = errors.New("newuidmap and newgidmap cannot be used")
	ErrNoSubIDs       = errors.New("no subordinate IDs")
	ErrNoUserNS       = errors.New("user namespaces are not allowed")
	ErrNoTun          = errors.New("/dev/net/tun cannot be used")
	ErrNoFuse         = errors.New("/dev/fuse cannot be used")
	ErrNoProc         = errors.New("containers cannot have a /proc of their own")
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

// preflight looks for everything that would make Run fail on this host, without
// changing anything. The error joins all Problems; nil means that none was seen.
func preflight(h Host, c Config) error {
	problems := []*Problem{h.UserNS(), h.programs(c)}
	if c.IDMapping == IDsSubordinate {
		problems = append(problems, h.IDMappers(), h.SubIDs())
	}
	if c.Uplink == UplinkSlirp || c.Uplink == UplinkPasta || c.Uplink == UplinkGvisor {
		problems = append(problems, h.Tun())
	}
	var errs []error
	for _, p := range problems {
		if p != nil {
			errs = append(errs, p)
		}
	}
	return errors.Join(errs...)
}

// explainStart adds what the host says about a node that could not be made.
func explainStart(err error) error {
	err = fmt.Errorf("the node has ended: %w", err)
	if p := ThisHost().probeUserNS(); p != nil {
		return errors.Join(err, p)
	}
	return err
}

func (h Host) programs(c Config) *Problem {
	need := map[string]string{"ip": "iproute2", "nsenter": "util-linux", "mount": "mount"}
	switch c.Uplink {
	case UplinkSlirp:
		need[c.SlirpBinary] = "slirp4netns"
	case UplinkPasta:
		need[c.PastaBinary] = "passt"
	}
	var missing, packages []string
	for _, name := range slices.Sorted(maps.Keys(need)) {
		if _, err := h.LookPath(name); err != nil {
			missing, packages = append(missing, name), append(packages, need[name])
		}
	}
	if missing == nil {
		return nil
	}
	return &Problem{ErrMissingProgram, strings.Join(missing, ", "),
		"sudo apt install " + strings.Join(packages, " ") + "    # Debian's names"}
}

// IDMappers makes sure that newuidmap and newgidmap are there and may do their
// work: they need to be setuid root or to have a file capability, and to be
// allowed to use it.
func (h Host) IDMappers() *Problem {
	for _, name := range []string{"newuidmap", "newgidmap"} {
		path, err := h.LookPath(name)
		if err != nil {
			return &Problem{ErrNoIDMapper, name + " is not installed",
				"sudo apt install uidmap    # Debian; shadow-utils on Fedora, shadow elsewhere"}
		}
		st, err := os.Stat(path)
		if err != nil {
			return &Problem{ErrNoIDMapper, err.Error(), ""}
		}
		if st.Mode()&os.ModeSetuid != 0 && ownerOf(st) == h.RootUID {
			continue
		}
		if n, err := unix.Getxattr(path, "security.capability", nil); err == nil && n > 0 {
			continue
		}
		return &Problem{ErrNoIDMapper, path + " is neither setuid root nor has file capabilities",
			"sudo chmod u+s " + path}
	}
	if h.NoNewPrivs {
		return &Problem{ErrNoIDMapper, "this process has no_new_privs set, under which setuid programs are without effect",
			"start the daemon without it (systemd: NoNewPrivileges=no; containers: allowPrivilegeEscalation: true)"}
	}
	return nil
}

// Package setup makes a user's account ready for subpod (systemd units, crictl's
// configuration, shell completion, linger), and takes back what it has made.
//
// What is done is noted first, in a record in the user's state directory: files with
// their digest. A file that is not as the record has it is the user's, and is left alone.
package setup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/subpod/subpod/configs"
)

const (
	// commandTimeout bounds one call of systemctl or loginctl, and the look at the socket.
	commandTimeout = 20 * time.Second
	// startTimeout bounds the start of the service, which waits for its readiness.
	startTimeout = 100 * time.Second
)

const (
	unitService = "subpod.service"
	unitSocket  = "subpod.socket"
)

// ErrForeignDaemon says that a daemon runs which is no service of systemd.
var ErrForeignDaemon = errors.New("a daemon runs already, outside of systemd")

// ErrBusy says that another call of setup is at work.
var ErrBusy = errors.New("another \"subpod setup\" is at work")

// ErrOtherUnit says that setup has chosen the other way of starting before.
var ErrOtherUnit = errors.New("the daemon is started another way")

// ErrOtherSocket says that the socket unit is of no use: clients come to another socket.
var ErrOtherSocket = errors.New("daemon.socket is not the one of subpod.socket")

// ErrNoSession says that the units of the user cannot be asked for: systemd has no session
// of the user's here.
var ErrNoSession = errors.New("there is no systemd session")

// Setup is what Do and Undo work on.
type Setup struct {
	Binary string // path of subpod, absolute
	User   string // name of the account
	Home   string // its home, as systemd knows it

	Getenv    func(string) string // the shell's environment
	Variables []string            // those that configuration and its paths depend on, HOME first
	Programs  []string            // paths of those that the daemon runs, as the shell finds them

	ConfigHome  string            // $XDG_CONFIG_HOME
	DataHome    string            // $XDG_DATA_HOME
	StateHome   string            // $XDG_STATE_HOME
	RuntimeDir  string            // $XDG_RUNTIME_DIR
	Root        string            // "", or what stands for / in tests
	Socket      string            // CRI endpoint of the configuration
	Completions map[string]string // scripts by the name of the shell
	OnDemand    bool              // start by the socket unit, at the first client
	DryRun      bool              // say what would be done only
	Out         io.Writer
}

// Do writes what is missing, enables linger, and starts the service. Idempotent.
// ErrForeignDaemon, ErrOtherUnit, ErrOtherSocket and ErrBusy before anything is changed.
func (s Setup) Do(ctx context.Context) error {
	systemd := s.hasSystemd()
	if systemd && !s.DryRun && s.foreign(ctx) {
		return fmt.Errorf("%w (it serves %s): end it first (kill $(cat %s)), then: subpod setup", ErrForeignDaemon, s.Socket, shellWord(filepath.Join(filepath.Dir(s.Socket), "daemon.lock")))
	}
	// ListenStream= of configs/subpod.socket.
	if at := filepath.Join(s.RuntimeDir, "subpod", "subpod.sock"); systemd && s.OnDemand && filepath.Clean(s.Socket) != at {
		return fmt.Errorf("%w: clients come to %s, systemd would listen on %s; leave daemon.socket at its default, or setup without --on-demand", ErrOtherSocket, s.Socket, at)
	}
	made := missingDirs(filepath.Dir(s.recordFile()))
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := s.load()
	if err != nil {
		return err
	}
	r.Dirs = append(r.Dirs, made...)
	if other := unitOf(!s.OnDemand); slices.Contains(r.Units, other) {
		return fmt.Errorf("%w: %s is enabled; change that by subpod setup --undo, which ends the containers, and setup again", ErrOtherUnit, other)
	}
	files, err := s.files(ctx, systemd)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := s.write(r, f); err != nil {
			return err
		}
	}
	if !systemd {
		s.say("no systemd user session", "no unit is written and nothing starts at login: \"subpod run\" starts a daemon where none runs, \"subpod daemon\" is one for another init")
		return s.hint()
	}
	if err := s.linger(ctx, r); err != nil {
		return err
	}
	if err := s.start(ctx, r); err != nil {
		return err
	}
	return s.hint()
}

// hint says what only the user can do.
func (s Setup) hint() error {
	_, err := fmt.Fprintf(s.Out, "\nFor crictl: export CRI_CONFIG_FILE=%s\nTo take this back: subpod setup --undo\n", shellWord(s.crictlFile()))
	return err
}

// say prints one line of the report.
func (s Setup) say(what, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if text != "" {
		what += ": " + text
	}
	fmt.Fprintln(s.Out, what)
}

// hasSystemd reports whether there is a user manager to talk to.
func (s Setup) hasSystemd() bool {
	_, err := os.Stat(filepath.Join(s.RuntimeDir, "systemd"))
	return s.RuntimeDir != "" && err == nil && s.booted()
}

// booted reports whether systemd runs this machine (sd_booted(3)).
func (s Setup) booted() bool {
	_, err := os.Stat(filepath.Join(s.Root, "/run/systemd/system"))
	return err == nil
}

// foreign reports whether someone serves the socket who is no unit of ours.
func (s Setup) foreign(ctx context.Context) bool {
	conn, err := net.DialTimeout("unix", s.Socket, commandTimeout)
	if err != nil {
		return false
	}
	conn.Close()
	for _, unit := range []string{unitService, unitSocket} {
		if _, err := s.systemctl(ctx, "is-active", "--quiet", unit); err == nil {
			return false
		}
	}
	return true
}

// linger has systemd keep the user's services without a login, where it may be asked to.
func (s Setup) linger(ctx context.Context, r *record) error {
	if _, err := os.Stat(filepath.Join(s.Root, "/var/lib/systemd/linger", s.User)); err == nil {
		s.say("linger is enabled", "")
		return nil
	}
	if s.DryRun {
		s.say("would enable linger", "")
		return nil
	}
	r.Linger = true
	if err := s.save(r); err != nil {
		return err
	}
	if _, err := s.command(ctx, commandTimeout, "loginctl", "--no-ask-password", "enable-linger"); err != nil {
		r.Linger = false
		s.say("linger is not enabled", "the daemon and its containers end with your last session. To keep them: sudo loginctl enable-linger %s (%v)", s.User, err)
		return s.save(r)
	}
	s.say("enabled linger", "the daemon runs without a login")
	return nil
}

// unitOf returns the unit that starts the daemon.
func unitOf(onDemand bool) string {
	if onDemand {
		return unitSocket
	}
	return unitService
}

// start enables and starts the unit. A service that runs goes on as it is: a new unit is its
// next start's.
func (s Setup) start(ctx context.Context, r *record) error {
	unit := unitOf(s.OnDemand)
	if s.DryRun {
		s.say("would enable and start "+unit, "")
		return nil
	}
	if _, err := s.systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	if _, err := s.systemctl(ctx, "is-enabled", "--quiet", unit); err != nil {
		r.Units = append(r.Units, unit)
		if err := s.save(r); err != nil {
			return err
		}
	}
	if _, err := s.command(ctx, startTimeout, "systemctl", "--user", "enable", "--now", unit); err != nil {
		return fmt.Errorf("%w; why: journalctl --user -u subpod -n 20, and subpod doctor", err)
	}
	s.say("started "+unit, "")
	return nil
}

func (s Setup) systemctl(ctx context.Context, args ...string) (string, error) {
	return s.command(ctx, commandTimeout, "systemctl", append([]string{"--user"}, args...)...)
}

// command runs a program and returns its output.
func (s Setup) command(ctx context.Context, timeout time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.RuntimeDir)
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
		if text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
	}
	return text, err
}

func (s Setup) crictlFile() string { return filepath.Join(s.ConfigHome, "subpod", "crictl.yaml") }

// files lists what is to be there, but for what an installation for all users has
// already.
func (s Setup) files(ctx context.Context, systemd bool) ([]file, error) {
	prefix := filepath.Dir(filepath.Dir(s.Binary))
	endpoint := (&url.URL{Scheme: "unix", Path: s.Socket}).String()
	all := []file{{path: s.crictlFile(), text: fmt.Sprintf("# For crictl, which finds it by CRI_CONFIG_FILE.\nruntime-endpoint: %[1]s\nimage-endpoint: %[1]s\ntimeout: 30\n", endpoint)}}
	if systemd {
		units, err := s.unitFiles(ctx, prefix)
		if err != nil {
			return nil, err
		}
		all = append(all, units...)
	}
	share := filepath.Join(s.Root, prefix, "share")
	for _, c := range []struct {
		shell, path string
		system      []string
	}{
		{"bash", filepath.Join(s.DataHome, "bash-completion/completions/subpod"), []string{share + "/bash-completion/completions"}},
		{"zsh", filepath.Join(s.DataHome, "zsh/site-functions/_subpod"), []string{share + "/zsh/site-functions", share + "/zsh/vendor-completions"}},
		{"fish", filepath.Join(s.ConfigHome, "fish/completions/subpod.fish"), []string{share + "/fish/vendor_completions.d"}},
	} {
		if _, err := exec.LookPath(c.shell); err == nil && s.Completions[c.shell] != "" {
			all = append(all, file{c.path, s.Completions[c.shell], c.system})
		}
	}
	return all, nil
}

// unitFiles lists the units, for where systemd looks for them.
func (s Setup) unitFiles(ctx context.Context, prefix string) ([]file, error) {
	dir, env, err := s.Units(ctx)
	if err != nil {
		return nil, err
	}
	for _, assignment := range env {
		s.say("the service gets", "%s, as your shell has it and systemd has not", assignment)
	}
	dirs := programDirs(s.Root, s.Binary, s.Programs)
	if len(dirs) > 0 {
		s.say("the service finds programs in", "%s, too, as your shell does", strings.Join(dirs, ", "))
	}
	unit, err := configs.Unit(s.Binary, dirs, env)
	if err != nil {
		return nil, err
	}
	// systemd looks into these prefixes only.
	system := ""
	if prefix == "/usr" || prefix == "/usr/local" {
		system = filepath.Join(s.Root, prefix, "lib/systemd/user")
	}
	return []file{
		{path: filepath.Join(dir, unitService), text: unit, system: []string{system}},
		{path: filepath.Join(dir, unitSocket), text: configs.SocketUnit(), system: []string{system}},
	}, nil
}

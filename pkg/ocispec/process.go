package ocispec

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	securejoin "github.com/cyphar/filepath-securejoin"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process sets what is run: command, environment, directory, limits, signal.
func (b *builder) process() error {
	args, err := b.args()
	if err != nil {
		return err
	}
	b.gen.SetProcessArgs(args)
	b.gen.SetProcessTerminal(b.Container.Tty)
	b.gen.SetProcessNoNewPrivileges(b.sec.NoNewPrivs)
	cwd := b.Container.WorkingDir
	if cwd == "" {
		cwd = b.Image.WorkingDir
	}
	if strings.ContainsRune(cwd, 0) {
		return invalid("working directory %q", cwd)
	}
	b.gen.SetProcessCwd(path.Clean("/" + cwd))
	if b.spec.Process.Env, err = b.env(); err != nil {
		return err
	}
	b.out.StopSignal, err = b.stopSignal()
	if err != nil {
		return err
	}
	return b.rlimits()
}

// linkedDir has the working directory be where its links lead, if nothing is there yet: an
// OCI runtime makes a directory that is missing, but crun none that a link leads to.
func (b *builder) linkedDir() error {
	cwd := b.spec.Process.Cwd
	for _, m := range b.spec.Mounts {
		if at := strings.TrimSuffix(path.Clean(m.Destination), "/"); at != "" && strings.HasPrefix(cwd+"/", at+"/") {
			return nil // what the image has there is not seen
		}
	}
	root, err := unix.Open(b.Rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(root)
	fd, err := openat2.InRoot(root, cwd, unix.O_PATH)
	if err == nil {
		return unix.Close(fd)
	}
	if !errors.Is(err, unix.ENOENT) {
		return nil // the runtime says what is wrong
	}
	if at, err := securejoin.SecureJoin(b.Rootfs, cwd); err == nil {
		b.gen.SetProcessCwd(path.Join("/", strings.TrimPrefix(at, b.Rootfs)))
	}
	return nil
}

// args follows the table in the Kubernetes documentation of command and args: a
// command replaces the image's entrypoint and its default arguments.
func (b *builder) args() ([]string, error) {
	c := b.Container
	var args []string
	switch {
	case len(c.Command) > 0:
		args = slices.Concat(c.Command, c.Args)
	case len(c.Args) > 0:
		args = slices.Concat(b.Image.Entrypoint, c.Args)
	default:
		args = slices.Concat(b.Image.Entrypoint, b.Image.Cmd)
	}
	if len(args) == 0 {
		return nil, invalid("no command given, and the image has none")
	}
	for i, a := range args {
		if err := carriable(fmt.Sprintf("argument %d", i), a); err != nil {
			return nil, err
		}
	}
	return args, nil
}

// carriable refuses what execve(2) or the OCI runtime's JSON cannot carry. The error does
// not show s, which may be a secret.
func carriable(what, s string) error {
	if i := strings.IndexByte(s, 0); i >= 0 {
		return invalid("%s has a zero byte at offset %d", what, i)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r == utf8.RuneError }); i >= 0 && !utf8.ValidString(s) {
		return invalid("%s is not UTF-8 (at offset %d or later): an OCI runtime cannot be given other bytes", what, i)
	}
	return nil
}

// env is, each overriding the one before: defaults, the image's, the container's.
func (b *builder) env() ([]string, error) {
	host := b.Pod.GetHostname()
	if host == "" {
		host = b.Host.Hostname
	}
	e := newEnvironment()
	if b.wantsEnv(defaultPath) {
		e.set(defaultPath)
	}
	if host != "" && b.wantsEnv("HOSTNAME") {
		e.set("HOSTNAME=" + host)
	}
	if b.Container.Tty && b.wantsEnv("TERM") {
		e.set("TERM=xterm")
	}
	for _, v := range b.Image.Env {
		// A bad entry of an image is left out; one of the request is refused.
		if key, _, ok := strings.Cut(v, "="); ok && key != "" && carriable("", v) == nil && b.wantsEnv(v) {
			e.set(v)
		}
	}
	for i, kv := range b.Container.Envs {
		key, value := kv.GetKey(), string(kv.GetValue())
		if key == "" || strings.Contains(key, "=") {
			name, _, _ := strings.Cut(key, "=") // what follows may be a value
			return nil, invalid("environment variable name %.40q (number %d) is empty or has a \"=\"", name, i)
		}
		if err := carriable(fmt.Sprintf("the name of environment variable %d", i), key); err != nil {
			return nil, err
		}
		if err := carriable("the value of environment variable "+key, value); err != nil {
			return nil, err
		}
		e.set(key + "=" + value)
	}
	return e.list, nil
}

// environment is a list of variables in which the last setting of a name wins, in
// the place of its first.
type environment struct {
	list  []string
	place map[string]int
}

func newEnvironment(vars ...string) *environment {
	e := &environment{place: map[string]int{}}
	for _, v := range vars {
		e.set(v)
	}
	return e
}

func (e *environment) set(v string) {
	key, _, _ := strings.Cut(v, "=")
	if i, ok := e.place[key]; ok {
		e.list[i] = v
		return
	}
	e.place[key] = len(e.list)
	e.list = append(e.list, v)
}

// rlimits cuts the configured defaults to what this process may give.
func (b *builder) rlimits() error {
	for _, r := range b.Rlimits {
		if _, ok := rlimits[r.Type]; !ok {
			return invalid("unknown resource limit %q", r.Type)
		}
		if hard, ok := b.Host.HardLimits[r.Type]; ok && r.Hard > hard {
			b.warn("%s of %d is above the daemon's own hard limit: %d is used", r.Type, r.Hard, hard)
			r.Hard = hard
		}
		b.gen.AddProcessRlimits(r.Type, r.Hard, min(r.Soft, r.Hard))
	}
	return nil
}

// ExecProcess returns the process of an exec into the container of spec: its own
// command and terminal, everything else as the container's first process. spec is
// not changed and nothing is shared with it.
func ExecProcess(spec *specs.Spec, cmd []string, tty bool) *specs.Process {
	p := *spec.Process
	p.Args = slices.Clone(cmd)
	p.Terminal = tty
	p.ConsoleSize = nil
	p.CommandLine = ""
	p.Env = slices.Clone(p.Env)
	p.Rlimits = slices.Clone(p.Rlimits)
	p.User.AdditionalGids = slices.Clone(p.User.AdditionalGids)
	if c := p.Capabilities; c != nil {
		p.Capabilities = &specs.LinuxCapabilities{
			Bounding: slices.Clone(c.Bounding), Effective: slices.Clone(c.Effective),
			Inheritable: slices.Clone(c.Inheritable), Permitted: slices.Clone(c.Permitted),
			Ambient: slices.Clone(c.Ambient),
		}
	}
	if p.OOMScoreAdj != nil {
		score := *p.OOMScoreAdj
		p.OOMScoreAdj = &score
	}
	if tty && !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return &p
}

// Package registry runs a docker-registry on a free loopback port, and writes the
// registries.conf that sends every public name to it: what is pulled in the tests
// comes from there or from nowhere.
package registry

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Hosts are the registries that Conf redirects.
var Hosts = []string{"docker.io", "registry.k8s.io", "k8s.gcr.io", "gcr.io", "public.ecr.aws", "quay.io", "ghcr.io"}

// Options of a registry.
type Options struct {
	Binary   string   // docker-registry
	Dir      string   // what it stores; made when missing
	ReadOnly bool     // refuse pushes: Dir may then be anyone's
	Port     int      // 0: a free one
	Prefix   []string // a command to run it by, such as nsenter
}

// Registry is a running docker-registry.
type Registry struct {
	Addr string // host:port, plain HTTP

	cmd     *exec.Cmd
	conf    string
	tail    *tail
	once    sync.Once
	stopped chan struct{}
	err     error
}

var listening = regexp.MustCompile(`listening on ([0-9.]+:[0-9]+)`)

// Start starts a registry and returns once it listens.
func Start(o Options) (*Registry, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if !o.ReadOnly {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	conf, err := os.CreateTemp("", "registry-*.yml")
	if err != nil {
		return nil, err
	}
	if _, err := conf.WriteString(config(o, dir)); err != nil {
		return nil, err
	}
	if err := conf.Close(); err != nil {
		return nil, err
	}
	r := &Registry{conf: conf.Name(), tail: &tail{}, stopped: make(chan struct{})}
	argv := append(slices.Clone(o.Prefix), o.Binary, "serve", conf.Name())
	r.cmd = exec.Command(argv[0], argv[1:]...)
	r.cmd.Stdout = r.tail
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := r.start(); err != nil {
		os.Remove(r.conf)
		return nil, fmt.Errorf("start %s: %w", o.Binary, err)
	}
	addr := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			fmt.Fprintln(r.tail, lines.Text())
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				addr <- m[1]
			}
		}
		close(addr)
	}()
	select {
	case r.Addr = <-addr:
	case <-time.After(time.Minute):
	}
	if r.Addr == "" {
		r.Stop()
		return nil, fmt.Errorf("docker-registry does not listen: %s", r.tail)
	}
	return r, nil
}

func config(o Options, dir string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `version: 0.1
log: {level: info, accesslog: {disabled: true}}
http: {addr: "127.0.0.1:%d", secret: tests, relativeurls: true}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
`, o.Port, dir)
	if o.ReadOnly {
		b.WriteString("  maintenance: {readonly: {enabled: true}, uploadpurging: {enabled: false}}\n")
	}
	return b.String()
}

// start starts the process, which a test that is killed does not leave behind: the kernel
// ends it with the thread that has started it, so that one is kept until Stop.
func (r *Registry) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := r.cmd.Start()
		started <- err
		if err == nil {
			<-r.stopped
		}
	}()
	return <-started
}

// Stop ends the registry and waits for it. Further calls do nothing.
func (r *Registry) Stop() error {
	r.once.Do(func() {
		defer os.Remove(r.conf)
		defer close(r.stopped)
		if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			r.err = err
		}
		kill := time.AfterFunc(5*time.Second, func() { r.cmd.Process.Kill() })
		defer kill.Stop()
		r.cmd.Wait()
	})
	return r.err
}

// Conf returns a registries.conf that takes every image of Hosts from addr, over
// plain HTTP. Nothing falls back to the internet.
func Conf(addr string) string {
	var b strings.Builder
	b.WriteString("unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"disabled\"\n")
	for _, host := range Hosts {
		fmt.Fprintf(&b, "\n[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", host, addr+"/"+host)
	}
	fmt.Fprintf(&b, "\n[[registry]]\nlocation = %q\ninsecure = true\n", addr)
	return b.String()
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 4096 {
		t.buf = t.buf[len(t.buf)-4096:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.podman.io/storage/pkg/configfile"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/storage/internal/fetch"
)

// A pull or load runs in a process of its own, the content process: this binary, started
// again under contentName. It opens the same store, and does all that reads what
// strangers have written: answers of registries, manifests, compressed streams, archives
// and tables of contents. It is confined (confinement) and bounded (bound), gets its job
// and credentials through a socket and returns the IDs of images. The server holds, for
// it, what it relies on (holds), and cleans up after it however it ends.

// contentName is what a content process is started as (argv[0]).
const contentName = "subpod-content"

// contentGrace is how long a content process may take to end when its request has
// ended; then it is killed.
const contentGrace = 3 * time.Second

// maxContentLogs is how many lines one content process may log.
const maxContentLogs = 200

// contentRun is what a content process gets beside its job.
type contentRun struct {
	network  bool
	readable []string       // files and directories
	progress func(Progress) // may be nil
	proxy    *fetch.Proxy   // of a pull
}

// runContent runs job for the transfer in a content process, and returns the IDs of the
// images that are in the store then.
func (t *transfer) runContent(job contentJob, run contentRun) ([]string, error) {
	l := t.im.store
	job.Options, job.Driver, job.Fuse, job.Tmp = l.opts, l.driver.name, l.driver.fuse, t.tmp
	job.LogLevel = levelOf(l.log)
	files, err := t.im.registries.files()
	if err != nil {
		return nil, err
	}
	writable, err := t.writable()
	if err != nil {
		return nil, fmt.Errorf("start a content process: %w", err)
	}
	conn, remote, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("start a content process: %w", err)
	}
	defer conn.Close()
	c := confinement{readOnly: append(files, run.readable...), readWrite: writable, program: "/proc/self/exe", network: run.network}
	p, err := startContent(c, remote, l.contentEnv(t.tmp))
	remote.Close()
	if err != nil {
		return nil, fmt.Errorf("start a content process: %w", err)
	}
	// The end of the request is the end of what the process reads; then it has a moment
	// to clean up.
	stop := context.AfterFunc(t.ctx, func() {
		_ = conn.CloseWrite()
		select {
		case <-p.ended:
		case <-time.After(contentGrace):
			p.kill()
		}
	})
	defer stop()
	defer func() {
		// It has said its last word, or something that it should not.
		p.kill()
		<-p.ended
	}()
	w := &wire{rw: conn}
	if err := w.send(job); err != nil {
		return nil, p.why(t.ctx, err, l.opts.Limits)
	}
	if run.proxy != nil {
		done := make(chan struct{})
		defer close(done)
		go t.reportMoves(w, run.proxy, done)
	}
	result, err := t.serveContent(w, run.progress)
	if err != nil {
		return nil, p.why(t.ctx, err, l.opts.Limits)
	}
	return result.Images, result.Err.unpack()
}

// writable are the directories and files that the content process may change: those of
// containers/storage, its own temporary ones and the library's cache. Of the server's own
// it sees nothing: the server follows what is there (blobs, records, marks).
func (t *transfer) writable() ([]string, error) {
	l := t.im.store
	if err := os.MkdirAll(l.dirs.cache(), 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(l.opts.Root)
	if err != nil {
		return nil, err
	}
	paths := []string{l.opts.RunRoot, l.dirs.cache(), t.tmp}
	for _, e := range entries {
		if path := filepath.Join(l.opts.Root, e.Name()); path != l.dirs.own && e.Type()&fs.ModeSymlink == 0 {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// reportMoves tells a content process that its proxy goes on: it fetches what the
// process has not asked for yet, or waits for a registry that shall be asked again.
func (t *transfer) reportMoves(w *wire, p *fetch.Proxy, done <-chan struct{}) {
	tick := time.NewTicker(guardInterval(t.im.store.opts.PullTimeout))
	defer tick.Stop()
	for moved := int64(0); ; {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		if now := p.Moved(); now != moved {
			moved = now
			if w.send(contentAnswer{Moved: true}) != nil {
				return
			}
		}
	}
}

// serveContent answers a content process until it returns its result.
func (t *transfer) serveContent(w *wire, progress func(Progress)) (*contentResult, error) {
	logged := 0
	for {
		var m contentMessage
		if err := w.receive(&m, maxContentMessage); err != nil {
			return nil, err
		}
		switch {
		case m.Result != nil:
			return m.Result, nil
		case m.Hold != "":
			if err := w.send(contentAnswer{Err: newContentFailed(t.hold(m.Hold))}); err != nil {
				return nil, err
			}
		case m.Dirty:
			if err := w.send(contentAnswer{Err: newContentFailed(t.markDirty())}); err != nil {
				return nil, err
			}
		case m.Progress != nil && progress != nil:
			progress(*m.Progress)
		case m.Log != nil:
			if logged++; logged <= maxContentLogs {
				t.im.store.logContent(m.Log)
			}
		}
	}
}

// heldThing is what a content process may ask to be held: a layer, or an image.
var heldThing = regexp.MustCompile(`^(image )?[0-9a-f]{64}$`)

// maxHeld is how many things one transfer may hold.
const maxHeld = 100000

// hold holds a layer or image (imageKey) until the transfer's end.
func (t *transfer) hold(id string) error {
	if !heldThing.MatchString(id) || len(t.held) >= maxHeld {
		return fmt.Errorf("%w: %q can't be held", ErrCorrupt, id)
	}
	if err := t.im.held.hold(t.ctx, id); err != nil {
		return err
	}
	t.held = append(t.held, id)
	if image, ok := strings.CutPrefix(id, imageKey("")); ok && t.im.held.alone(id) {
		// Nobody makes it. That loading it again fails is no reason to remove it.
		if _, err := t.im.store.cs.Image(image); err == nil {
			t.had = append(t.had, image)
		}
	}
	return nil
}

// release releases what the transfer holds and returns the layers and images among it.
func (t *transfer) release() (layers, images []string) {
	t.im.held.release(t.held...)
	for _, id := range t.held {
		if image, ok := strings.CutPrefix(id, imageKey("")); ok {
			images = append(images, image)
		} else {
			layers = append(layers, id)
		}
	}
	t.held = nil
	return layers, images
}

// files are those that every content process may read: the machine's and the user's
// configuration of registries, what it names, and the system's certificates.
func (r *registries) files() ([]string, error) {
	o := r.opts
	usual := filepath.Join(o.Home, ".config", "containers")
	paths := []string{"/etc", "/proc", r.configHome(), usual, o.RegistriesConf, o.RegistriesConfDir, o.PolicyJSON, o.CertsDir,
		os.Getenv("SSL_CERT_FILE"), os.Getenv("SSL_CERT_DIR")}
	for _, v := range os.Environ() {
		if _, value, _ := strings.Cut(v, "="); strings.HasPrefix(v, "CONTAINERS_") && filepath.IsAbs(value) {
			paths = append(paths, value)
		}
	}
	for _, path := range linkedFiles {
		// The directory of a resolv.conf in /run: the file is replaced now and then.
		if target, err := filepath.EvalSymlinks(path); err == nil && target != path {
			paths = append(paths, target, filepath.Dir(target))
		}
	}
	paths = append(append(paths, targetsBelow(r.configHome())...), targetsBelow(usual)...)
	paths = append(paths, o.AdditionalStores...)
	policies, err := r.policyPaths()
	if err != nil {
		return nil, err
	}
	if o.PolicyJSON != "" {
		policies = []string{o.PolicyJSON}
	}
	paths = append(paths, namedFiles(firstFile(policies...))...)
	signatures, err := searchPaths(configfile.File{Name: "registries", Extension: "yaml", DoNotLoadMainFiles: true, DoNotUseExtensionForConfigName: true})
	if err != nil {
		return nil, err
	}
	for _, dir := range signatures.DropInDirectories {
		files, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
		for _, f := range files {
			paths = append(paths, namedFiles(f)...)
		}
	}
	return existing(paths...), nil
}

// linkedFiles are files of the system that on some lie elsewhere, by a link.
var linkedFiles = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl/certs", "/etc/ssl/certs/ca-certificates.crt",
	"/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem", "/etc/pki/tls/certs", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"}

// targetsBelow returns what symbolic links below a directory of configuration lead to.
func targetsBelow(dir string) []string {
	var targets []string
	seen := 0
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if seen++; err != nil || seen > 1000 {
			return filepath.SkipDir
		}
		if d.Type()&fs.ModeSymlink != 0 {
			if target, err := filepath.EvalSymlinks(path); err == nil {
				targets = append(targets, target)
			}
		}
		return nil
	})
	return targets
}

// absolutePath finds paths in policy.json ("keyPath": "/…") and in registries.d
// (lookaside: file:///…).
var absolutePath = regexp.MustCompile(`(?:"|file://)(/[^"\s]+)`)

// namedFiles returns the files and directories that a file of configuration names.
func namedFiles(path string) []string {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var paths []string
	for _, m := range absolutePath.FindAllSubmatch(data, -1) {
		paths = append(paths, string(m[1]))
	}
	return paths
}

// contentVariables are the environment variables that a content process gets.
var contentVariables = []string{"HOME", "LANG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "GODEBUG",
	"STORAGE_DRIVER", "STORAGE_OPTS",
	// Tests find processes by this.
	"SUBPOD_TEST_DIR"}

// contentEnv returns the environment of content processes.
func (l *layerStore) contentEnv(tmp string) []string {
	// The libraries decompress by programs where they find them: those that may be run.
	programs := slices.DeleteFunc(filepath.SplitList(os.Getenv("PATH")), func(dir string) bool {
		return !slices.ContainsFunc(systemDirs, func(system string) bool { return strings.HasPrefix(dir+"/", system+"/") })
	})
	env := []string{"TMPDIR=" + tmp, "GOMEMLIMIT=" + strconv.FormatInt(l.opts.Limits.Memory/8*7, 10),
		"PATH=" + strings.Join(programs, string(filepath.ListSeparator))}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if slices.Contains(contentVariables, name) || strings.HasPrefix(strings.TrimPrefix(name, "_"), "CONTAINERS_") {
			env = append(env, v)
		}
	}
	return env
}

// logContent logs a line of a content process.
func (l *layerStore) logContent(m *contentLog) {
	// It has cut them itself, unless it was taken over.
	attrs := make([]slog.Attr, 0, maxLogAttrs)
	for _, a := range m.Attrs[:min(len(m.Attrs), maxLogAttrs)] {
		attrs = append(attrs, slog.String(cutLog(a[0]), cutLog(a[1])))
	}
	l.log.LogAttrs(context.Background(), m.Level, cutLog(m.Message), attrs...)
}

// levelOf returns the lowest level that log writes.
func levelOf(log *slog.Logger) slog.Level {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(context.Background(), level) {
			return level
		}
	}
	return slog.LevelError
}

// socketPair returns two connected ends, the second for another process.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	own, remote := os.NewFile(uintptr(fds[0]), "content"), os.NewFile(uintptr(fds[1]), "server")
	defer own.Close()
	conn, err := net.FileConn(own)
	if err != nil {
		remote.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), remote, nil
}

// contentProcess is a content process that was started.
type contentProcess struct {
	cmd    *exec.Cmd
	stderr *tail
	ended  chan struct{} // closed when it has been reaped

	mu     sync.Mutex
	killed bool
}

// startContent starts a content process under c. The thread that starts it is confined
// with it, and ends with it: the kernel kills the process when that thread ends.
func startContent(c confinement, remote *os.File, env []string) (*contentProcess, error) {
	p := &contentProcess{stderr: &tail{}, ended: make(chan struct{})}
	p.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{contentName}, Env: env, Dir: "/",
		Stderr: p.stderr, ExtraFiles: []*os.File{remote}, WaitDelay: contentGrace,
		SysProcAttr: &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setsid: true},
	}
	// Package os tries once, with a child, whether pidfds work. That child must not be the
	// first of the PID namespace.
	_, _ = os.FindProcess(os.Getpid())
	started := make(chan error)
	go onOwnThread(func() {
		err := c.enter()
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			close(p.ended)
		}
	})
	if err := <-started; err != nil {
		return nil, err
	}
	// The kernel, short of memory, ends this before anything else.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.cmd.Process.Pid), []byte("1000"), 0)
	return p, nil
}

// onOwnThread runs do on a thread that no other goroutine gets before or after, and that
// is not the main one: what the kernel says of the process as a whole, and lets others do
// to it, goes by the main thread.
func onOwnThread(do func()) {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if unix.Gettid() != unix.Getpid() {
		do()
		return
	}
	taken := make(chan struct{})
	go func() {
		runtime.LockOSThread() // another thread, since the main one is taken
		close(taken)
		do()
	}()
	<-taken
	runtime.UnlockOSThread()
}

// kill kills the process, and with it, as the first of its PID namespace, its children.
func (p *contentProcess) kill() {
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	_ = p.cmd.Process.Kill()
}

// why returns the error of a process that has ended without a result.
func (p *contentProcess) why(ctx context.Context, err error, limits Limits) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("the content process: %w", err)
	}
	select {
	case <-p.ended:
	case <-time.After(contentGrace):
		return errors.New("the content process has closed its connection, but does not end")
	}
	said := p.stderr.String()
	state := p.cmd.ProcessState
	status, _ := state.Sys().(interface{ Signaled() bool })
	switch {
	case outOfMemory(said):
		return memoryError(limits)
	case status != nil && status.Signaled() && state.SystemTime()+state.UserTime() >= contentCPU-time.Second:
		return fmt.Errorf("%w: unpacking it takes more than %v of processor time", ErrTooLarge, contentCPU)
	}
	return fmt.Errorf("the content process has ended: %v: %s", state, firstLines(said))
}

// outOfMemory reports whether a Go program has ended because it got no more memory. Its
// garbage collector does not expect that and then reads at address 0, on the stack of the
// runtime (goroutine 0), where no code of a program runs.
func outOfMemory(said string) bool {
	return strings.Contains(said, "runtime: out of memory") || strings.Contains(said, "runtime: cannot allocate memory") ||
		strings.Contains(said, "SIGSEGV") && strings.Contains(said, "addr=0x0") && strings.Contains(said, "goroutine 0 ")
}

func memoryError(limits Limits) error {
	return fmt.Errorf("%w: unpacking it takes more memory than images.limits.memory allows (%d)", ErrTooLarge, limits.Memory)
}

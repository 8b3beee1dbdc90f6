package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"
)

// worker is one pull or load in the content process: the store as it sees it, and a
// context that ends when nothing moves any more.
type worker struct {
	im     *Images
	server *serverConn
	store  *holdingStore
	meter  *meter
	ctx    context.Context
	cancel context.CancelCauseFunc
	tmp    string
	anew   bool // see contentJob
	// platform is what is pulled of an index.
	platform Platform
	// pulling: what comes into tmp is the image's blobs.
	pulling bool

	pace pace
	// stated is the size of all blobs as the manifest has it, 0 before it is known.
	stated atomic.Int64
}

// contentCPU is the processor time that each process of a transfer may take.
const contentCPU = time.Hour

// errServerGone ends a content process without a server, or whose request has ended.
var errServerGone = errors.New("the request has ended")

// runContentProcess does the job that the server sends and returns the exit code.
func runContentProcess() int {
	unix.CloseOnExec(3)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.StringData(contentName+"\x00"))), 0, 0, 0) // for ps(1)
	conn, err := newInbox(3)
	if err != nil {
		fmt.Fprintln(os.Stderr, "open the server's socket:", err)
		return 1
	}
	w := &wire{rw: conn}
	var job contentJob
	if err := w.receive(&job, maxJobMessage); err != nil {
		fmt.Fprintln(os.Stderr, "receive the job:", err)
		return 1
	}
	server := &serverConn{wire: w, answers: make(chan contentAnswer), inbox: conn}
	job.Options.Log = slog.New(&remoteLog{server: server, level: job.LogLevel})
	var result contentResult
	images, err := server.work(job)
	result.Images, result.Err = images, newContentFailed(err)
	if err := w.send(contentMessage{Result: &result}); err != nil {
		return 1
	}
	return 0
}

// work does job, and returns also when what it calls does not: with the process ends all
// that it has started.
func (s *serverConn) work(job contentJob) ([]string, error) {
	if err := bound(job.Options.Limits); err != nil {
		return nil, fmt.Errorf("%w: limit the content process: %w", ErrNotUsable, err)
	}
	t := &worker{server: s, tmp: job.Tmp}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	go s.listen(t.pace.step, t.cancel)
	go s.beat(guardInterval(job.Options.PullTimeout))
	if err := t.open(job); err != nil {
		return nil, err
	}
	type outcome struct {
		images []string
		err    error
	}
	done := make(chan outcome, 1)
	t.pace.step()
	go t.guard()
	go t.watchDisk()
	go func() {
		images, err := t.do(job)
		done <- outcome{images, err}
	}()
	select {
	case o := <-done:
		return o.images, classify(t.ctx, o.err)
	case <-t.ctx.Done():
	}
	select {
	case o := <-done:
		return o.images, classify(t.ctx, o.err)
	case <-time.After(contentGrace / 2):
		return nil, classify(t.ctx, context.Cause(t.ctx))
	}
}

// open opens the store that the server has open.
func (t *worker) open(job contentJob) (err error) {
	forwardLogrus(job.Options.Log)
	l := newLayerStore(job.Options)
	l.driver = choice{name: job.Driver, fuse: job.Fuse}
	if l.cs, err = cstorage.GetStore(l.storeOptions()); err != nil {
		return fmt.Errorf("%w: open %s: %w", ErrNotUsable, job.Options.Root, err)
	}
	t.im, t.pulling, t.anew, t.platform = newImages(l), job.Pull != "", job.Anew, job.Platform
	// The server has read the same configuration, and warned.
	t.im.registries.log = slog.New(slog.DiscardHandler)
	t.meter = &meter{ctx: t.ctx, limits: job.Options.Limits}
	t.store = &holdingStore{Store: l.cs, server: t.server, meter: t.meter, layers: l, tmp: t.tmp}
	return nil
}

// do pulls, loads or saves.
func (t *worker) do(job contentJob) ([]string, error) {
	switch {
	case job.Load != "":
		return t.load(job.Load)
	case job.Save != nil:
		return nil, t.save(job.Save, job.Format)
	}
	return t.pull(job.Pull, job.Route, t.server.progress)
}

// systemContext is that of registries, without credentials.
func (t *worker) systemContext() (*types.SystemContext, error) {
	sys, err := t.im.registries.systemContext(t.tmp)
	if err == nil {
		noCredentials(sys)
		if p := t.platform; p != (Platform{}) {
			sys.OSChoice, sys.ArchitectureChoice, sys.VariantChoice = p.OS, p.Architecture, p.Variant
		}
	}
	return sys, err
}

// markDirty has the server note that an image is being written.
func (t *worker) markDirty() error { return t.server.ask(contentMessage{Dirty: true}) }

// bound limits this process and those that it starts: memory, processor time, the size
// of a file, descriptors, and no core. RLIMIT_DATA counts what is allocated; of the
// address space a Go program reserves far more than it uses.
func bound(l Limits) error {
	limits := map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_CPU: uint64(contentCPU / time.Second), unix.RLIMIT_NOFILE: 4096,
		// The store's own lists are files too.
		unix.RLIMIT_FSIZE: uint64(max(l.Size, 1<<30))}
	if !raceDetector { // which takes many times as much
		limits[unix.RLIMIT_DATA] = uint64(l.Memory)
	}
	for what, limit := range limits {
		var now unix.Rlimit
		if err := unix.Getrlimit(what, &now); err != nil {
			return err
		}
		limit = min(limit, now.Max)
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
	}
	return nil
}

// diskInterval is the time between two looks at the disk.
const diskInterval = 250 * time.Millisecond

// watchDisk ends the transfer when the disk is full, or when blobs are larger than the
// manifest states: what is written then is of no use, and in the way of all others.
func (t *worker) watchDisk() {
	tick := time.NewTicker(diskInterval)
	defer tick.Stop()
	full := 0
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
		var st unix.Statfs_t
		if err := unix.Statfs(t.im.store.opts.Root, &st); err == nil && int64(st.Bavail)*st.Bsize < diskLeast {
			full++
		} else {
			full = 0
		}
		if full > 1 {
			t.cancel(fmt.Errorf("%w: %s is full", ErrNoSpace, t.im.store.opts.Root))
			return
		}
		stated := t.stated.Load()
		if blobs, _ := diskUsage(t.ctx, t.tmp); stated > 0 && int64(blobs.Bytes) > stated+stated/8+blobSlack {
			t.cancel(fmt.Errorf("%w: its blobs are larger than its manifest states (%d bytes)", ErrCorrupt, stated))
			return
		}
	}
}

const (
	// diskLeast is the free space, in bytes, below which a disk counts as full.
	diskLeast = 16 << 10
	// blobSlack is what a transfer's temporary directory may hold beyond its blobs.
	blobSlack = 16 << 20
)

// serverConn is the server as its content process sees it.
type serverConn struct {
	*wire
	asking  sync.Mutex // one question at a time
	answers chan contentAnswer

	inbox *inbox
	loans loans
}

// listen receives answers until the server closes its side, which ends the work.
func (s *serverConn) listen(moved func(), cancel context.CancelCauseFunc) {
	for {
		var a contentAnswer
		if err := s.receive(&a, maxContentMessage); err != nil {
			cancel(errServerGone)
			close(s.answers)
			s.loans.end()
			return
		}
		if a.Lent != nil {
			s.loans.answered(*a.Lent, s.inbox.take())
			continue
		}
		if a.Moved {
			moved()
			continue
		}
		s.answers <- a
	}
}

// beat tells the server at intervals that this process lives.
func (s *serverConn) beat(interval time.Duration) {
	for s.send(contentMessage{Alive: true}) == nil {
		time.Sleep(interval)
	}
}

// ask sends a message that the server answers, and returns the error in its answer.
func (s *serverConn) ask(m contentMessage) error {
	s.asking.Lock()
	defer s.asking.Unlock()
	if err := s.send(m); err != nil {
		return err
	}
	a, ok := <-s.answers
	if !ok {
		return errServerGone
	}
	return a.Err.unpack()
}

func (s *serverConn) progress(p Progress) { _ = s.send(contentMessage{Progress: &p}) }

// remoteLog sends what a content process logs to the server.
type remoteLog struct {
	server *serverConn
	level  slog.Level
	attrs  []slog.Attr
}

// Enabled implements slog.Handler.
func (r *remoteLog) Enabled(_ context.Context, level slog.Level) bool { return level >= r.level }

// maxLogText is how much of a message and of each of its attributes is logged, maxLogKey
// how much of their names, and maxLogAttrs how many of these.
const (
	maxLogText  = 2 << 10
	maxLogKey   = 128
	maxLogAttrs = 16
)

func cutLog(s string) string { return s[:min(len(s), maxLogText)] }

// Handle implements slog.Handler.
func (r *remoteLog) Handle(_ context.Context, rec slog.Record) error {
	m := contentLog{At: rec.Time, Level: rec.Level, Message: cutLog(rec.Message)}
	add := func(a slog.Attr) bool {
		m.Attrs = append(m.Attrs, [2]string{a.Key[:min(len(a.Key), maxLogKey)], cutLog(a.Value.String())})
		return len(m.Attrs) < maxLogAttrs
	}
	for _, a := range r.attrs {
		add(a)
	}
	rec.Attrs(add)
	return r.server.send(contentMessage{Log: &m})
}

// WithAttrs implements slog.Handler.
func (r *remoteLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &remoteLog{r.server, r.level, append(r.attrs[:len(r.attrs):len(r.attrs)], attrs...)}
}

// WithGroup implements slog.Handler: nothing here uses groups.
func (r *remoteLog) WithGroup(string) slog.Handler { return r }

// watch follows the copy's events: they are progress, for the guard and for
// whoever asked.
func (t *worker) watch(events <-chan types.ProgressProperties, report func(Progress)) {
	var p Progress
	begun, done := map[digest.Digest]bool{}, map[digest.Digest]bool{} // a layer that was streamed is come upon again
	for e := range events {
		t.pace.add(int64(e.OffsetUpdate))
		p.Downloaded += int64(e.OffsetUpdate)
		if e.Event != types.ProgressEventRead {
			t.pace.step()
		}
		if blob := e.Artifact.Digest; e.Event != types.ProgressEventRead && !begun[blob] {
			begun[blob] = true
			p.Blobs++
			if e.Event == types.ProgressEventNewArtifact {
				p.Total += max(e.Artifact.Size, 0)
			}
		}
		if blob := e.Artifact.Digest; (e.Event == types.ProgressEventDone || e.Event == types.ProgressEventSkipped) && !done[blob] {
			done[blob] = true
			p.Done++
			if e.Event == types.ProgressEventDone {
				p.Total -= max(e.Artifact.Size-int64(e.Offset), 0) // what a partial pull needed not
			}
		}
		if report != nil {
			report(p)
		}
	}
}

// guardInterval is the time between two looks at a transfer that may be idle for limit.
func guardInterval(limit time.Duration) time.Duration { return max(limit/8, 10*time.Millisecond) }

// guard cancels the transfer when nothing that matters has moved for PullTimeout.
// Unpacking is not waiting: what is being unpacked has been downloaded.
func (t *worker) guard() {
	limit := t.im.store.opts.PullTimeout
	tick := time.NewTicker(guardInterval(limit))
	defer tick.Stop()
	var seen Usage
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
		idle := t.pace.idle()
		if idle < limit/4 {
			continue
		}
		if t.store.unpacking.Load() > 0 {
			t.pace.step()
			continue
		}
		if now := t.written(); now.Inodes != seen.Inodes || now.Bytes >= seen.Bytes+meaningful || now.Bytes < seen.Bytes {
			seen = now
			t.pace.step()
			continue
		}
		if idle >= limit {
			t.cancel(fmt.Errorf("%w for %v", errStalled, limit))
			return
		}
	}
}

// written measures what the transfer has put on the disk so far.
func (t *worker) written() Usage {
	blobs, _ := diskUsage(t.ctx, t.tmp)
	staged, _ := diskUsage(t.ctx, t.im.store.dirs.staging())
	return Usage{Bytes: blobs.Bytes + staged.Bytes, Inodes: blobs.Inodes + staged.Inodes}
}

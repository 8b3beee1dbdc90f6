package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

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
	readable []string       // files and directories
	progress func(Progress) // may be nil
	proxy    *fetch.Proxy   // of a pull
}

// runContent runs job for the transfer in a content process, and returns the IDs of the
// images that are in the store then.
func (t *transfer) runContent(job contentJob, run contentRun) (ids []string, err error) {
	l := t.im.store
	job.Options, job.Driver, job.Fuse, job.Tmp = l.opts, l.driver.name, l.driver.fuse, t.tmp
	job.LogLevel = levelOf(l.log)
	files, err := t.im.registries.files()
	if err != nil {
		return nil, err
	}
	writable, plain, err := t.writable()
	if err != nil {
		return nil, fmt.Errorf("start a content process: %w", err)
	}
	conn, remote, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("start a content process: %w", err)
	}
	defer conn.Close()
	watch := newContentWatch(conn, l.opts.PullTimeout, run.proxy)
	c := confinement{readOnly: append(files, run.readable...), readWrite: writable, plain: plain, program: "/proc/self/exe"}
	if run.proxy != nil {
		c.port = run.proxy.Route().Port()
	}
	p, err := startContent(c, remote, l.contentEnv(t.tmp))
	remote.Close()
	if err != nil {
		return nil, fmt.Errorf("start a content process: %w", err)
	}
	defer func() {
		// It has said its last word, or something that it should not.
		p.end(l.log)
		err = errors.Join(err, l.vet())
	}()
	// The end of the request is the end of what the process reads; then it has a moment
	// to clean up.
	stop := context.AfterFunc(t.ctx, func() {
		_ = conn.CloseWrite()
		select {
		case <-p.ended:
		case <-time.After(contentGrace):
			watch.hangUp(p, context.Cause(t.ctx))
		}
	})
	defer stop()
	done := make(chan struct{})
	defer close(done)
	go watch.run(p, done)
	w := &wire{rw: conn}
	if err := w.send(job); err != nil {
		return nil, watch.why(p.why(t.ctx, err, l.opts.Limits))
	}
	if run.proxy != nil {
		go t.reportMoves(w, run.proxy, done)
	}
	lending := newLender(t.ctx, conn, w, run.proxy)
	defer lending.end()
	result, err := t.serveContent(w, watch, lending, run.progress)
	if err != nil {
		return nil, watch.why(p.why(t.ctx, err, l.opts.Limits))
	}
	return result.Images, result.Err.unpack()
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
func (t *transfer) serveContent(w *wire, watch *contentWatch, lending *lender, progress func(Progress)) (*contentResult, error) {
	logged, limit := 0, t.im.store.opts.Limits.maxMessage()
	for {
		var m contentMessage
		if err := w.receive(&m, limit); err != nil {
			return nil, err
		}
		watch.heard.step()
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
		case m.Lend != nil:
			if err := lending.lend(*m.Lend); err != nil {
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
var heldThing = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(image )?[0-9a-f]{64}$`)
})

// maxHeld is how many things one transfer may hold.
const maxHeld = 100000

// hold holds a layer or image (imageKey) until the transfer's end.
func (t *transfer) hold(id string) error {
	if !heldThing().MatchString(id) || len(t.held) >= maxHeld {
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

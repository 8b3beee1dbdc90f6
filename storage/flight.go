package storage

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"go.podman.io/image/v5/docker/reference"
)

// errClosed ends pulls when the store closes.
var errClosed = errors.New("the store was closed")

// pulls makes callers that want the same thing share one pull.
type pulls struct {
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
	flights map[string]*flight
}

// flight is one pull and those who wait for it.
type flight struct {
	cancel   context.CancelCauseFunc
	waiting  int
	done     chan struct{}
	img      Image
	err      error
	mu       sync.Mutex
	watchers map[int]func(Progress)
	next     int
}

// flightKey identifies a pull by its reference, platform and credentials, so that nobody
// gets a private image through somebody else's pull.
func flightKey(named reference.Named, auth *Auth, platform Platform) string {
	key := named.String()
	if platform != (Platform{}) {
		key += " " + platform.String()
	}
	if auth == nil {
		return key
	}
	return fmt.Sprintf("%s %x", key, sha256.Sum256(fmt.Appendf(nil, "%q", *auth)))
}

// join waits for the flight with key, starting it with pull if there is none.
// The flight ends when nobody waits for it any more.
func (p *pulls) join(ctx context.Context, key string, progress func(Progress),
	pull func(context.Context, func(Progress)) (Image, error)) (Image, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return Image{}, errClosed
	}
	f := p.flights[key]
	if f == nil {
		// Values of the first caller (tracing, say) stay, its end does not.
		flightCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, done: make(chan struct{}), watchers: map[int]func(Progress){}}
		p.flights[key] = f
		p.running.Add(1)
		go func() {
			defer p.running.Done()
			f.img, f.err = pull(flightCtx, f.report)
			p.mu.Lock()
			if p.flights[key] == f {
				delete(p.flights, key)
			}
			p.mu.Unlock()
			cancel(nil)
			close(f.done)
		}()
	}
	f.waiting++
	p.mu.Unlock()
	defer f.watch(progress)()
	select {
	case <-f.done:
		return f.img, f.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	f.waiting--
	if f.waiting == 0 {
		f.cancel(context.Cause(ctx))
		// A caller that comes now starts anew instead of sharing the end.
		if p.flights[key] == f {
			delete(p.flights, key)
		}
	}
	p.mu.Unlock()
	return Image{}, context.Cause(ctx)
}

// close ends all flights and waits for them.
func (p *pulls) close() {
	p.mu.Lock()
	p.closed = true
	for _, f := range p.flights {
		f.cancel(errClosed)
	}
	p.mu.Unlock()
	p.running.Wait()
}

// watch adds a receiver of progress and returns the function that removes it.
func (f *flight) watch(progress func(Progress)) func() {
	if progress == nil {
		return func() {}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.next
	f.next++
	f.watchers[id] = progress
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, id)
	}
}

func (f *flight) report(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watchers {
		w(p)
	}
}

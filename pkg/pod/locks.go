package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/semaphore"

	"github.com/subpod/subpod/pkg/trace"
)

// locks gives every ID a lock of its own. Waiting is first come, first served, and
// ends with the context.
type locks struct {
	mu sync.Mutex
	m  map[string]*lock
}

type lock struct {
	users        int // waiting or holding; at 0 the entry is removed
	sem          *semaphore.Weighted
	holders      map[*context.CancelCauseFunc]struct{}
	interrupting int // requests that wait with mode interrupt
}

// mode says how a lock is held.
type mode int

const (
	// shared is for work inside a pod sandbox, of which any amount goes on at once.
	shared mode = iota
	// exclusive keeps all others out.
	exclusive
	// interrupt is exclusive, and ends the contexts of those who hold the lock, or
	// come to hold it earlier, instead of waiting for what they wait for.
	interrupt
)

// allShares is what an exclusive holder takes of the semaphore.
const allShares = 1 << 20

// errInterrupted is the cause of a context that ended because another request wants
// the lock with mode interrupt.
var errInterrupted = errors.New("another request is stopping or removing it")

func newLocks() *locks { return &locks{m: map[string]*lock{}} }

// acquire waits for the lock of id. The returned context is the holder's: it ends
// with ctx or when another request interrupts the holder. unlock must be called once.
func (l *locks) acquire(ctx context.Context, id string, mode mode) (held context.Context, unlock func(), err error) {
	n := int64(allShares)
	if mode == shared {
		n = 1
	}
	k := l.enter(id, mode)
	if ctx.Err() != nil || !k.sem.TryAcquire(n) {
		err = trace.Do(ctx, "wait for another request", func() error { return k.sem.Acquire(ctx, n) })
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if mode == interrupt {
		k.interrupting--
	}
	if err != nil {
		l.leave(id, k)
		return nil, nil, fmt.Errorf("wait for another request on %s: %w", id, err)
	}
	held, cancel := context.WithCancelCause(ctx)
	if k.interrupting > 0 {
		cancel(errInterrupted)
	}
	k.holders[&cancel] = struct{}{}
	return held, func() {
		l.mu.Lock()
		delete(k.holders, &cancel)
		l.leave(id, k)
		l.mu.Unlock()
		cancel(nil)
		k.sem.Release(n)
	}, nil
}

// enter registers a request for the lock of id, and interrupts its holders where the
// mode says so.
func (l *locks) enter(id string, mode mode) *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.m[id]
	if k == nil {
		k = &lock{sem: semaphore.NewWeighted(allShares), holders: map[*context.CancelCauseFunc]struct{}{}}
		l.m[id] = k
	}
	k.users++
	if mode == interrupt {
		k.interrupting++
		for cancel := range k.holders {
			(*cancel)(errInterrupted)
		}
	}
	return k
}

// leave is called with l.mu locked.
func (l *locks) leave(id string, k *lock) {
	if k.users--; k.users == 0 {
		delete(l.m, id)
	}
}

// explain names the reason of an error that comes from an interrupted context.
func explain(held context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(held), errInterrupted) && !errors.Is(err, errdefs.ErrAborted) {
		return fmt.Errorf("%w: %w (%w)", errdefs.ErrAborted, errInterrupted, err)
	}
	return err
}

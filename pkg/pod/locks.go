package pod

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"
)

// locks gives every ID a lock of its own. Many may share it (work inside a pod
// sandbox), one may hold it alone (stopping or removing it). Waiting is first
// come, first served, and ends with the context.
type locks struct {
	mu sync.Mutex
	m  map[string]*lock
}

type lock struct {
	users int // waiting or holding; at 0 the entry goes
	sem   *semaphore.Weighted
}

// alone takes all the shares of a lock.
const allShares = 1 << 20

func newLocks() *locks { return &locks{m: map[string]*lock{}} }

// share waits for a shared hold; the returned function ends it.
func (l *locks) share(ctx context.Context, id string) (func(), error) { return l.acquire(ctx, id, 1) }

// alone waits for the only hold; the returned function ends it.
func (l *locks) alone(ctx context.Context, id string) (func(), error) {
	return l.acquire(ctx, id, allShares)
}

func (l *locks) acquire(ctx context.Context, id string, n int64) (func(), error) {
	l.mu.Lock()
	k := l.m[id]
	if k == nil {
		k = &lock{sem: semaphore.NewWeighted(allShares)}
		l.m[id] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.m, id)
		}
	}
	if err := k.sem.Acquire(ctx, n); err != nil {
		leave()
		return nil, fmt.Errorf("wait for another request on %s: %w", id, err)
	}
	return func() {
		k.sem.Release(n)
		leave()
	}, nil
}

// names makes a name belong to one object, and a retried request find the
// object that the first one made.
type names struct {
	mu sync.Mutex
	m  map[string]*claim
}

type claim struct {
	id   string
	done chan struct{} // closed once the object is made, or given up
}

func newNames() *names { return &names{m: map[string]*claim{}} }

// claim takes name for id. When another object has the name its ID is
// returned, after the request that is making it has ended; the caller then
// made nothing. settle must be called once with whether the object now exists.
func (n *names) claim(ctx context.Context, name, id string) (existing string, settle func(made bool), err error) {
	for {
		n.mu.Lock()
		c := n.m[name]
		if c == nil {
			c = &claim{id: id, done: make(chan struct{})}
			n.m[name] = c
			n.mu.Unlock()
			return "", func(made bool) {
				if !made {
					n.free(name, id)
				}
				close(c.done)
			}, nil
		}
		n.mu.Unlock()
		select {
		case <-c.done:
		case <-ctx.Done():
			return "", nil, fmt.Errorf("wait for the request that is making %s: %w", name, ctx.Err())
		}
		n.mu.Lock()
		taken := n.m[name] == c
		n.mu.Unlock()
		if taken {
			return c.id, nil, nil
		}
	}
}

// set records a name found at start-up.
func (n *names) set(name, id string) {
	c := &claim{id: id, done: make(chan struct{})}
	close(c.done)
	n.mu.Lock()
	n.m[name] = c
	n.mu.Unlock()
}

// free gives the name up if id has it.
func (n *names) free(name, id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.m[name]; c != nil && c.id == id {
		delete(n.m, name)
	}
}

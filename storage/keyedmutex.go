package storage

import (
	"context"
	"sync"
)

// keyedMutex locks by ID.
type keyedMutex struct {
	mu    sync.Mutex
	locks map[string]*countedLock
}

type countedLock struct {
	held  chan struct{} // of one: full while locked
	users int
}

// lock locks id and returns the function that unlocks it, or the error of ctx.
func (k *keyedMutex) lock(ctx context.Context, id string) (unlock func(), err error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*countedLock{}
	}
	l := k.locks[id]
	if l == nil {
		l = &countedLock{held: make(chan struct{}, 1)}
		k.locks[id] = l
	}
	l.users++
	k.mu.Unlock()
	forget := func() {
		k.mu.Lock()
		if l.users--; l.users == 0 {
			delete(k.locks, id)
		}
		k.mu.Unlock()
	}
	select {
	case l.held <- struct{}{}:
		return func() {
			<-l.held
			forget()
		}, nil
	case <-ctx.Done():
		forget()
		return nil, context.Cause(ctx)
	}
}

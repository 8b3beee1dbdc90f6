package storage

import (
	"context"
	"sync"
	"time"
)

const (
	// usagePatience bounds what FSInfo waits for all root file systems that are being
	// measured; leastPatience is what it waits for each when that is over.
	usagePatience = 2 * time.Second
	leastPatience = 20 * time.Millisecond
	// A measurement that took slowUsage or longer is used again for usageRest times what it
	// took: at most one part in usageRest of all time goes into it.
	slowUsage = 50 * time.Millisecond
	usageRest = 20
	// maxMeasured is how many are measured at a time: each takes up to maxDepth descriptors.
	maxMeasured = 16
)

// usages measures what root file systems take. A container can have more files than can be
// counted while somebody waits: each measurement goes on by itself, of a root file system one
// at a time, and whoever waits for no longer gets the one before it.
type usages struct {
	ctx  context.Context // ends when the store is closed
	stop context.CancelFunc

	slots chan struct{} // of capacity maxMeasured; filled by those that are measured

	mu    sync.Mutex
	known map[string]*usageOf
}

// usageOf is what is known of one. Guarded by usages.mu.
type usageOf struct {
	last    Usage // of the last measurement that has succeeded
	err     error // of the last one
	at      time.Time
	took    time.Duration
	running chan struct{} // closed at the end of one under way; nil without one
}

func newUsages() *usages {
	ctx, stop := context.WithCancel(context.Background())
	return &usages{ctx: ctx, stop: stop, slots: make(chan struct{}, maxMeasured), known: map[string]*usageOf{}}
}

// of returns the result of measure, or the last one with the error of ctx when that ends first.
func (u *usages) of(ctx context.Context, id string, measure func(context.Context) (Usage, error)) (Usage, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	m := u.known[id]
	if m == nil {
		m = &usageOf{}
		u.known[id] = m
	}
	if m.running == nil {
		if m.err == nil && m.took >= slowUsage && time.Since(m.at) < usageRest*m.took {
			return m.last, nil
		}
		if ctx.Err() != nil {
			return m.last, ctx.Err()
		}
		m.running = make(chan struct{})
		go u.run(m, measure)
	}
	running := m.running
	u.mu.Unlock()
	var err error
	select {
	case <-running:
	case <-ctx.Done():
		err = ctx.Err()
	}
	u.mu.Lock()
	if err == nil {
		err = m.err
	}
	return m.last, err
}

func (u *usages) run(m *usageOf, measure func(context.Context) (Usage, error)) {
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	case <-u.ctx.Done(): // measure ends at once
	}
	begin := time.Now()
	usage, err := measure(u.ctx)
	u.mu.Lock()
	defer u.mu.Unlock()
	if m.err = err; err == nil {
		m.last = usage
	}
	m.at, m.took = time.Now(), time.Since(begin)
	close(m.running)
	m.running = nil
}

// forget drops what is known of a root file system that is removed.
func (u *usages) forget(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.known, id)
}

// Package events hands container events to whoever listens (CRI's
// GetContainerEvents), without ever making the one who reports an event wait.
package events

import (
	"context"
	"errors"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	// ErrSlow says that the subscriber fell so far behind that events were lost
	// to it. It has to look at the whole state again, then subscribe anew.
	ErrSlow = errors.New("subscriber is too slow: events were lost")
	// ErrClosed says that the bus or the subscription was closed.
	ErrClosed = errors.New("no more events")
)

// DefaultBuffer is how many events a subscriber may lag behind before it is cut
// off: 500 pods that stop at once, with a container each, and as much again.
const DefaultBuffer = 4096

// Bus hands each event to all subscribers. All methods may be called
// concurrently. Make one with New.
type Bus struct {
	buffer int

	mu     sync.Mutex
	subs   map[*Subscription]struct{}
	closed bool
}

// New makes a bus whose subscribers may each lag by buffer events;
// DefaultBuffer when buffer is not positive.
func New(buffer int) *Bus {
	if buffer <= 0 {
		buffer = DefaultBuffer
	}
	return &Bus{buffer: buffer, subs: map[*Subscription]struct{}{}}
}

// Publish hands e to every subscriber, in the order of the calls, and never
// waits: a subscriber whose buffer is full is cut off with ErrSlow. e is shared
// by all and must not be changed afterwards. After Close it does nothing.
func (b *Bus) Publish(e *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		select {
		case s.events <- e:
		default:
			s.end(ErrSlow)
		}
	}
}

// Subscribe returns a subscription to the events published from now on. The
// caller must Close it.
func (b *Bus) Subscribe() *Subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &Subscription{bus: b, events: make(chan *runtimeapi.ContainerEventResponse, b.buffer)}
	b.subs[s] = struct{}{}
	if b.closed {
		s.end(ErrClosed)
	}
	return s
}

// Close ends all subscriptions with ErrClosed, once they have read what they
// have. It is idempotent.
func (b *Bus) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for s := range b.subs {
		s.end(ErrClosed)
	}
}

// Subscription is one listener's queue of events.
type Subscription struct {
	bus    *Bus
	events chan *runtimeapi.ContainerEventResponse
	err    error // why events is closed; written before that
}

// end closes the queue; the caller holds the bus's lock.
func (s *Subscription) end(err error) {
	if _, ok := s.bus.subs[s]; !ok {
		return
	}
	delete(s.bus.subs, s)
	s.err = err
	close(s.events)
}

// Next returns the next event; it waits for one. When the subscription has
// ended, what is queued still comes first, then ErrSlow or ErrClosed for ever.
// A context that is done gives the context's error.
func (s *Subscription) Next(ctx context.Context) (*runtimeapi.ContainerEventResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case e, ok := <-s.events:
		if !ok {
			return nil, s.err
		}
		return e, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends the subscription. It is idempotent.
func (s *Subscription) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	s.end(ErrClosed)
}

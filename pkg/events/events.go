// Package events hands the events of pod sandboxes and containers to subscribers
// (CRI's GetContainerEvents), without ever making the publisher wait.
package events

import (
	"context"
	"errors"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// Event is a change of a pod sandbox or container, with the records as they were
// after it.
type Event struct {
	Type runtimeapi.ContainerEventType
	// ID is that of the container or pod sandbox that changed.
	ID  string
	At  time.Time
	Pod state.Pod
	// Containers are those of the pod sandbox; nil when it is gone.
	Containers []state.Container
}

var (
	// ErrSlow says that the subscriber fell so far behind that it missed
	// events. It has to look at the whole state again, then subscribe anew.
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
func (b *Bus) Publish(e *Event) {
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

// HasSubscribers reports whether anybody would get an event that is published now.
func (b *Bus) HasSubscribers() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs) > 0
}

// Subscribe returns a subscription to the events published from now on. The
// caller must Close it.
func (b *Bus) Subscribe() *Subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &Subscription{bus: b, events: make(chan *Event, b.buffer)}
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
	events chan *Event
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
func (s *Subscription) Next(ctx context.Context) (*Event, error) {
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

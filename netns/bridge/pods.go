package bridge

import (
	"context"
	"sync"

	"github.com/subpod/subpod/netns"
)

// pods are the pods that the network holds something for. The zero value is ready for
// use.
type pods struct {
	mu   sync.Mutex
	byID map[string]*podNet
}

// podNet is what the network holds for one pod.
type podNet struct {
	lock     chan struct{} // holds an element while the entry is locked
	gone     bool          // torn down and no longer in pods
	result   *netns.Result
	elements []element
	port     *isolatedPort // nil when pods are not isolated
	releases []func(context.Context) error
}

func (p *podNet) unlock() { <-p.lock }

// acquire returns the locked entry of the pod, which it makes when missing. It waits
// for whoever has the entry until ctx ends.
func (ps *pods) acquire(ctx context.Context, id string) (*podNet, error) {
	for {
		p, err := ps.get(id, true).wait(ctx)
		if p != nil || err != nil {
			return p, err
		}
	}
}

// acquireKnown is acquire without making an entry: nil for an unknown pod.
func (ps *pods) acquireKnown(ctx context.Context, id string) (*podNet, error) {
	for {
		p := ps.get(id, false)
		if p == nil {
			return nil, nil
		}
		if p, err := p.wait(ctx); p != nil || err != nil {
			return p, err
		}
	}
}

// wait locks the entry. nil when it is gone by then.
func (p *podNet) wait(ctx context.Context) (*podNet, error) {
	select {
	case p.lock <- struct{}{}:
	default:
		select {
		case p.lock <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if p.gone {
		p.unlock()
		return nil, nil
	}
	return p, nil
}

// tryAcquire is acquireKnown without waiting: busy when somebody has the entry.
func (ps *pods) tryAcquire(id string) (p *podNet, busy bool) {
	if p = ps.get(id, false); p == nil {
		return nil, false
	}
	select {
	case p.lock <- struct{}{}:
	default:
		return nil, true
	}
	if p.gone {
		p.unlock()
		return nil, false
	}
	return p, false
}

func (ps *pods) get(id string, create bool) *podNet {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.byID[id]
	if p == nil && create {
		p = &podNet{lock: make(chan struct{}, 1)}
		if ps.byID == nil {
			ps.byID = map[string]*podNet{}
		}
		ps.byID[id] = p
	}
	return p
}

// remove forgets the pod, whose entry the caller has locked.
func (ps *pods) remove(id string, p *podNet) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.byID, id)
	p.gone = true
}

// ids returns the pods that are known now.
func (ps *pods) ids() []string {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ids := make([]string, 0, len(ps.byID))
	for id := range ps.byID {
		ids = append(ids, id)
	}
	return ids
}

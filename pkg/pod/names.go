package pod

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// ErrNameTaken says that another object has the name: one that was made from another
// configuration.
var ErrNameTaken = fmt.Errorf("%w: the name is taken", errdefs.ErrAlreadyExists)

// names gives each name to one object, and lets a retried request find the object
// that the first one made. A name and the record that it stands for are one truth:
// both are looked up under one lock, and both are removed under it, so that whoever
// finds a name taken also finds the record.
type names[R any] struct {
	// record returns the record of an ID, delete removes it (package state).
	record func(id string) (R, error)
	delete func(id string) error

	// lock guards claims and the records of settled ones. It is a channel, which
	// testing/synctest can see a goroutine wait for.
	lock   chan struct{}
	claims map[string]*claim
}

type claim struct {
	id      string
	settled chan struct{} // closed once the object has been made or given up
}

func newNames[R any](record func(string) (R, error), remove func(string) error) *names[R] {
	return &names[R]{record: record, delete: remove, lock: make(chan struct{}, 1), claims: map[string]*claim{}}
}

// claim takes the name for id and returns nil; commit, abort or release ends the
// claim. When another object has the name its record is returned, once the request
// that is making it has ended.
func (n *names[R]) claim(ctx context.Context, name, id string) (*R, error) {
	for {
		n.lock <- struct{}{}
		c := n.claims[name]
		if c == nil {
			n.claims[name] = &claim{id: id, settled: make(chan struct{})}
			<-n.lock
			return nil, nil
		}
		select {
		case <-c.settled:
			r, err := n.record(c.id)
			if errors.Is(err, state.ErrNotFound) {
				delete(n.claims, name) // no record, no name
				<-n.lock
				continue
			}
			<-n.lock
			return &r, err
		default:
		}
		<-n.lock
		select {
		case <-c.settled:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the request that is making %s: %w", name, ctx.Err())
		}
	}
}

// restore records a name found at start-up.
func (n *names[R]) restore(name, id string) {
	n.lock <- struct{}{}
	defer func() { <-n.lock }()
	c := &claim{id: id, settled: make(chan struct{})}
	close(c.settled)
	n.claims[name] = c
}

// commit ends the claim of id: the name is its own until release.
func (n *names[R]) commit(name, id string) {
	n.lock <- struct{}{}
	defer func() { <-n.lock }()
	if c := n.claims[name]; c != nil && c.id == id {
		c.settle()
	}
}

// abort gives the name up if id has it; its record, if there is one, stays.
// Idempotent.
func (n *names[R]) abort(name, id string) {
	n.lock <- struct{}{}
	defer func() { <-n.lock }()
	n.free(name, id)
}

// release deletes the record of id and frees its name, as one step. When the record
// cannot be deleted, the name stays with it; where there is none, the name is free all
// the same. Idempotent.
func (n *names[R]) release(name, id string) error {
	n.lock <- struct{}{}
	defer func() { <-n.lock }()
	err := n.delete(id)
	if err != nil {
		if _, found := n.record(id); !errors.Is(found, state.ErrNotFound) {
			if c := n.claims[name]; c != nil && c.id == id {
				c.settle()
			}
			return err
		}
	}
	n.free(name, id)
	return err
}

// free is called with the lock held.
func (n *names[R]) free(name, id string) {
	if c := n.claims[name]; c != nil && c.id == id {
		delete(n.claims, name)
		c.settle()
	}
}

// settle lets those go on who wait for the claim. It is called with the lock held.
func (c *claim) settle() {
	select {
	case <-c.settled:
	default:
		close(c.settled)
	}
}

// podName returns the name of a pod sandbox, in messages too; no other pod sandbox
// has it.
func podName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s/%s (uid %s, attempt %d)", quotePart(m.GetNamespace()), quotePart(m.GetName()), quotePart(m.GetUid()), m.GetAttempt())
}

// containerName returns the name of a container, which no other container has.
func containerName(podID string, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("%s/%s (attempt %d)", podID, quotePart(m.GetName()), m.GetAttempt())
}

// quotePart quotes a part of a name that could be taken for more than one.
func quotePart(s string) string {
	if s == "" || strings.ContainsAny(s, "/(),\" \t\r\n") {
		return strconv.Quote(s)
	}
	return s
}

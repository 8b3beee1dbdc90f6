package pod

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// referenceTimeout is how long the readers of a container's root file system may take
// to end once they are interrupted.
const referenceTimeout = 10 * time.Second

// errRemoved is the cause of a reader's end.
var errRemoved = fmt.Errorf("%w: the container is being removed", errdefs.ErrAborted)

// references counts who reads or writes a container's root file system without
// holding its lock: a copy goes on for as long as its client likes. Removing the
// container interrupts them and waits for their end.
type references struct {
	mu sync.Mutex
	m  map[string]map[*reference]struct{} // by container ID
}

type reference struct {
	r      *references
	id     string
	ctx    context.Context // ends with the request, or when the container is removed
	cancel context.CancelCauseFunc
	closed chan struct{}
}

func newReferences() *references { return &references{m: map[string]map[*reference]struct{}{}} }

// add adds a reference. The caller holds the container's lock and has seen that it is
// not being removed. close must be called once.
func (r *references) add(ctx context.Context, id string) *reference {
	ref := &reference{r: r, id: id, closed: make(chan struct{})}
	ref.ctx, ref.cancel = context.WithCancelCause(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m[id] == nil {
		r.m[id] = map[*reference]struct{}{}
	}
	r.m[id][ref] = struct{}{}
	return ref
}

// close removes the reference.
func (ref *reference) close() {
	ref.r.mu.Lock()
	delete(ref.r.m[ref.id], ref)
	if len(ref.r.m[ref.id]) == 0 {
		delete(ref.r.m, ref.id)
	}
	ref.r.mu.Unlock()
	ref.cancel(nil)
	close(ref.closed)
}

// has reports whether the container is referenced.
func (r *references) has(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.m[id]) > 0
}

// end interrupts all references and returns once none is left.
func (r *references) end(ctx context.Context, id string) error {
	r.mu.Lock()
	var open []*reference
	for ref := range r.m[id] {
		ref.cancel(errRemoved)
		open = append(open, ref)
	}
	r.mu.Unlock()
	timeout := time.NewTimer(referenceTimeout)
	defer timeout.Stop()
	for _, ref := range open {
		select {
		case <-ref.closed:
		case <-timeout.C:
			return fmt.Errorf("remove container %s: files of it are still being copied and the copy does not end; try again", id)
		case <-ctx.Done():
			return fmt.Errorf("remove container %s: wait for the end of a copy: %w", id, ctx.Err())
		}
	}
	return nil
}

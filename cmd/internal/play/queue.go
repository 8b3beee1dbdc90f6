package play

import (
	"context"
	"fmt"
	"sync/atomic"
)

// queue is what the pods of a Job share that run one after the other, or a few at a time.
type queue struct {
	slots   chan struct{}
	waiting atomic.Int32 // pods that have not started
	failed  atomic.Bool  // one has failed, and with it the Job
}

// enter waits for the turn of a pod.
func (q *queue) enter(ctx context.Context, pod string) error {
	select {
	case q.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if q.failed.Load() {
		q.leave()
		return fmt.Errorf("%w: pod %s was not started, since another one of its Job has failed", ErrFailed, pod)
	}
	q.waiting.Add(-1)
	return nil
}

// leave makes room for the next pod.
func (q *queue) leave() { <-q.slots }

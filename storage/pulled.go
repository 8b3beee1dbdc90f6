package storage

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// Pulled is a pull that has ended. Pulls that several callers wait for are one.
type Pulled struct {
	// Bytes have been downloaded.
	Bytes int64
	Took  time.Duration
	// Cause of a failure, one of PullCauses; "" for none.
	Cause string
}

// pullCauses are the causes of failed pulls; the first match counts.
var pullCauses = []struct {
	err  error
	name string
}{
	{context.Canceled, "canceled"},
	{context.DeadlineExceeded, "canceled"},
	{errClosed, "canceled"},
	{ErrNoSpace, "no_space"},
	{ErrImageNotFound, "not_found"},
	{ErrUnauthorized, "unauthorized"},
	{ErrSignature, "policy"},
	{ErrConfiguration, "configuration"},
	{ErrTooLarge, "limit"},
	{ErrCorrupt, "corrupt"},
	{ErrUnsupported, "unsupported"},
	{ErrIDRange, "id_range"},
	{ErrRegistryUnavailable, "unavailable"},
}

// otherCause is what no class tells.
const otherCause = "other"

func causeOf(err error) string {
	if err == nil {
		return ""
	}
	for _, c := range pullCauses {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	return otherCause
}

// PullCauses lists the values of Pulled.Cause, but for "".
func PullCauses() []string {
	var names []string
	seen := map[string]bool{}
	for _, c := range pullCauses {
		if !seen[c.name] {
			names, seen[c.name] = append(names, c.name), true
		}
	}
	return append(names, otherCause)
}

// pullCount is what is counted of a pull.
type pullCount struct {
	began   time.Time
	observe func(Pulled)
	bytes   atomic.Int64
}

// watch returns a receiver of progress that passes it on.
func (c *pullCount) watch(next func(Progress)) func(Progress) {
	return func(p Progress) {
		c.bytes.Store(p.Downloaded)
		if next != nil {
			next(p)
		}
	}
}

func (c *pullCount) end(err error) {
	if c.observe != nil {
		c.observe(Pulled{Bytes: c.bytes.Load(), Took: time.Since(c.began), Cause: causeOf(err)})
	}
}

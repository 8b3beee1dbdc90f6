package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// TestPullCauses: what a failed pull is counted as.
func TestPullCauses(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{fmt.Errorf("pull: %w", ErrImageNotFound), "not_found"},
		{ErrUnauthorized, "unauthorized"},
		{ErrRegistryUnavailable, "unavailable"},
		{fmt.Errorf("%w: %w", ErrRegistryUnavailable, context.Canceled), "canceled"},
		{ErrSignature, "policy"},
		{ErrNoSpace, "no_space"},
		{ErrTooLarge, "limit"},
		{errors.New("of no class"), "other"},
	} {
		if got := causeOf(c.err); got != c.want || got != "" && !slices.Contains(PullCauses(), got) {
			t.Errorf("%v is %q, want %q of %q", c.err, got, c.want, PullCauses())
		}
	}
	if all := PullCauses(); len(slices.Compact(slices.Sorted(slices.Values(all)))) != len(all) {
		t.Errorf("a cause twice: %q", all)
	}
}

package quantity

import (
	"math"
	"testing"
	"time"
)

func TestSeconds(t *testing.T) {
	for n, want := range map[int64]time.Duration{
		math.MinInt64: 0, -1: 0, 0: 0, 1: time.Second, math.MaxInt64: math.MaxInt32 * time.Second,
		math.MaxInt64/int64(time.Second) + 1: math.MaxInt32 * time.Second,
	} {
		if got := Seconds(n); got != want {
			t.Errorf("%d seconds are %v, want %v", n, got, want)
		}
	}
}

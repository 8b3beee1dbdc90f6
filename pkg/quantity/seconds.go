package quantity

import (
	"math"
	"time"
)

// Seconds returns a time that a request gives in seconds: at least 0 and at most 68 years,
// so that sums of two are times, too.
func Seconds(n int64) time.Duration {
	return time.Duration(min(max(n, 0), math.MaxInt32)) * time.Second
}

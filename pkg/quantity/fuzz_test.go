package quantity

import (
	"math"
	"testing"
)

// FuzzParse: what is read is a number that arithmetic can go on with, and rates are
// within their limits.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"", "500m", "1Gi", "1e6", "1e308E", "0x1p4", ".", "1_0", "Inf", "-0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if q, err := Parse(text); err == nil && !(q >= 0 && q <= math.MaxFloat64) {
			t.Errorf("%q was read as %v", text, q)
		}
		if r, err := ParseRate(text); err == nil && text != "" && (r < MinRate || r > MaxRate) {
			t.Errorf("the rate %q was read as %d", text, r)
		}
	})
}

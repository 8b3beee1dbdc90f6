package quantity

import "testing"

func TestParseRate(t *testing.T) {
	for text, want := range map[string]uint64{
		"": 0, "1000": 1000, "10M": 10e6, "1.5G": 1.5e9, "1Mi": 1 << 20, "1e6": 1e6, "1P": 1e15, "8k": 8000,
	} {
		if got, err := ParseRate(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "-1M", "999", "2P", "10m", "10 M", "M", "Inf", "NaN", "0x10M", "1_000", "10MB", "1e99"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("%q: %d, want an error", text, got)
		}
	}
}

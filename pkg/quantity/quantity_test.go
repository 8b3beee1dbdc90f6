package quantity

import (
	"encoding/json"
	"errors"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Quantity{"500m": 0.5, "2": 2, "1Gi": 1 << 30, "1G": 1e9, "0.1": 0.1, "100k": 1e5} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "Gi", "1gi", "-1", "1 Gi", "0x10", "Inf", "NaN", "1e308E"} {
		if got, err := Parse(text); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q: %v, %v; want ErrSyntax", text, got, err)
		}
	}
}

func TestUnmarshal(t *testing.T) {
	for text, want := range map[string]Quantity{`"500m"`: 0.5, `2`: 2, `1.5`: 1.5, `"1Gi"`: 1 << 30} {
		var got Quantity
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{`"one"`, `true`, `{}`, `""`} {
		var got Quantity
		if err := json.Unmarshal([]byte(text), &got); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v, %v; want ErrSyntax", text, got, err)
		}
	}
}

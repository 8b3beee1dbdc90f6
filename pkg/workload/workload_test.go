package workload

import (
	"errors"
	"testing"
)

func TestParsePolicy(t *testing.T) {
	for text, want := range map[string]Policy{
		"": {Name: No}, "no": {Name: No}, "always": {Name: Always}, "unless-stopped": {Name: UnlessStopped},
		"on-failure": {Name: OnFailure}, "on-failure:0": {Name: OnFailure}, "on-failure:5": {Name: OnFailure, Max: 5},
	} {
		if got, err := ParsePolicy(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"never", "Always", "on-failure:", "on-failure:-1", "on-failure:x", "always:3", "no:1", "on-failure:99999999999"} {
		if got, err := ParsePolicy(text); !errors.Is(err, ErrPolicy) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

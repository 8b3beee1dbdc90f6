package ocispec

import (
	"errors"
	"strings"
	"testing"
)

// wantInvalid checks that Build refuses the request with ErrInvalid and says why.
func wantInvalid(t *testing.T, in Input, why string) {
	t.Helper()
	_, err := Build(in)
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("Build: %v, want ErrInvalid (%s)", err, why)
		return
	}
	if !strings.Contains(err.Error(), why) {
		t.Errorf("Build: %q does not say %q", err, why)
	}
}

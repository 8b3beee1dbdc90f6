package cli

import (
	"regexp"
	"testing"
)

// The CRI wants a semantic version, also of a program that "go build" has made.
func TestVersionIsSemantic(t *testing.T) {
	if got := Version("0.2.0-dev+d57127d-dirty"); got != "0.2.0-dev+d57127d-dirty" {
		t.Errorf("the build's version became %q", got)
	}
	semantic := regexp.MustCompile(`^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)
	if got := Version(""); !semantic.MatchString(got) {
		t.Errorf("without a version of the build: %q, which is not semantic", got)
	}
}

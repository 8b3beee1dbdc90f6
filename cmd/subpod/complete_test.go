package main

import (
	"slices"
	"testing"
)

// TestCompletable: a name that is completed is a word, to the shell and the terminal.
func TestCompletable(t *testing.T) {
	good := []string{"web", "shop/web/main", "a_b.c-1", "docker.io/library/busybox:latest", "x@sha256:00"}
	bad := []string{"$(touch x)", "a;b", "a b", "`id`", "a\nb", "\x1b[2J", "-rf", "a'b", "~", "a*", "a\u202e", "#x", "a\\b"}
	if got := completable(slices.Concat(good, bad)); !slices.Equal(got, good) {
		t.Errorf("completed are %q, want %q", got, good)
	}
}

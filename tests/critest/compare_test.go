package critest

import (
	"slices"
	"testing"
)

const sample = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="5" failures="1" errors="1"><testsuite name="CRI validation">
 <testcase name="[BeforeSuite]" status="passed"></testcase>
 <testcase name="[It] [k8s.io] A good one" status="passed"></testcase>
 <testcase name="[It] [k8s.io] A bad  one" status="failed"><failure message="expected 1&#xA;to be 2" type="failed"></failure></testcase>
 <testcase name="[It] [k8s.io] A panic" status="panicked"><error message="nil pointer" type="panicked"></error></testcase>
 <testcase name="[It] [k8s.io] Not here" status="skipped"><skipped message="no AppArmor"></skipped></testcase>
 <testcase name="[It] [k8s.io] Some benchmark" status="skipped"><skipped></skipped></testcase>
</testsuite></testsuites>`

func TestCompare(t *testing.T) {
	results, err := parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := results.count(), "1 passed, 2 failed, 1 skipped"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	bad, panics, skip := "[k8s.io] A bad one", "[k8s.io] A panic", "[k8s.io] Not here"
	for _, c := range []struct {
		name           string
		known, allowed list
		want           []string
	}{
		{"as listed", list{bad: "why", panics: "why"}, list{skip: "why"}, nil},
		{"unexpected failure", list{bad: "why"}, list{skip: "why"}, []string{"failed: " + panics + ": panicked: nil pointer"}},
		{"skipped instead of failed", list{bad: "why", panics: "why", skip: "why"}, nil, nil},
		{"unexpected skip", list{bad: "why", panics: "why"}, nil, []string{"skipped without being in skipped.txt: " + skip}},
		{"unexpected pass", list{bad: "why", panics: "why", "[k8s.io] A good one": "why"}, list{skip: "why"},
			[]string{"passes now: take it out of its list: [k8s.io] A good one"}},
		{"renamed", list{bad: "why", panics: "why", "gone": "why"}, list{skip: "why"}, []string{"listed, and no such spec: gone"}},
	} {
		if got := compare(results, c.known, c.allowed); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// The committed lists must be well formed, and no spec on both.
func TestLists(t *testing.T) {
	known, err := readList("known-failures.txt", here())
	if err != nil {
		t.Fatal(err)
	}
	allowed, err := readList("skipped.txt", here())
	if err != nil {
		t.Fatal(err)
	}
	if len(known) > 0 {
		t.Errorf("known failures: %v, want none", known)
	}
	conditional, err := readList("conditional.txt", here())
	if err != nil {
		t.Fatal(err)
	}
	for name := range conditional {
		if _, both := allowed[name]; both {
			t.Errorf("on both lists: %s", name)
		}
	}
}

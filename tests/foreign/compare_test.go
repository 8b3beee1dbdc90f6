package foreign

import (
	"slices"
	"testing"
)

const sample = `=== RUN   TestGood
--- PASS: TestGood (0.10s)
=== RUN   TestParent
    --- PASS: TestParent/one (0.00s)
    --- FAIL: TestParent/two (0.00s)
--- FAIL: TestParent (0.00s)
    --- PASS: TestOdd/one (0.00s)
--- FAIL: TestOdd (0.00s)
--- SKIP: TestNotHere (0.00s)
FAIL
`

func TestCompare(t *testing.T) {
	results := parse(sample)
	if got, want := results.leaves().count(), "3 passed, 2 failed, 1 skipped"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	names := []string{"TestGood", "TestParent", "TestOdd", "TestNotHere", "TestDaemon"}
	skipped := "skipped itself: TestNotHere: put it into not-applicable.txt, with the reason, or give it what it wants"
	known := list{"TestParent/two": "why", "TestOdd": "why"}
	for _, c := range []struct {
		name        string
		known, skip list
		want        []string
	}{
		{"as listed", known, list{"TestDaemon": "why"}, []string{skipped}},
		{"unexpected", nil, list{"TestDaemon": "why"}, []string{"failed: TestOdd", "failed: TestParent/two", skipped}},
		{"ended early", known, nil, []string{"did not end: TestDaemon", skipped}},
		{"passes", list{"TestParent/two": "why", "TestOdd": "why", "TestParent/one": "why"}, list{"TestDaemon": "why"},
			[]string{"passes now: take it out of known-failures.txt: TestParent/one", skipped}},
		{"renamed", known, list{"TestDaemon": "why", "TestGone/one": "why"}, []string{"listed, and no such test: TestGone/one", skipped}},
		{"gone", list{"TestParent/two": "why", "TestOdd": "why", "TestGone": "why"}, list{"TestDaemon": "why"},
			[]string{"listed, and no such test has run: TestGone", skipped}},
	} {
		if got := compare(names, results, c.known, c.skip); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// The committed lists must be well formed, and no test on both.
func TestLists(t *testing.T) {
	known, err := readList("known-failures.txt", false)
	if err != nil {
		t.Fatal(err)
	}
	skip, err := readList("not-applicable.txt", false)
	if err != nil {
		t.Fatal(err)
	}
	for name := range skip {
		if _, both := known[name]; both {
			t.Errorf("on both lists: %s", name)
		}
	}
}

func TestPattern(t *testing.T) {
	l := list{"TestB/a+b": "why", "TestA": "why"}
	if got, want := l.pattern(), `^TestA$|^TestB$/^a\+b$`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

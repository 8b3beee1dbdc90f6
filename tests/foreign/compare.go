package foreign

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/subpod/subpod/tests/lists"
)

// outcomes are "PASS", "FAIL" or "SKIP" by the name of a test or subtest.
type outcomes map[string]string

// list is a committed list: name of a test or subtest → reason.
type list map[string]string

var resultLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)

// parse reads the output of a test binary with -test.v.
func parse(output string) outcomes {
	results := outcomes{}
	for line := range strings.SplitSeq(output, "\n") {
		if m := resultLine.FindStringSubmatch(line); m != nil {
			results[m[2]] = m[1]
		}
	}
	return results
}

// leaves returns the outcomes of those that have no subtests.
func (o outcomes) leaves() outcomes {
	parents := map[string]bool{}
	for name := range o {
		for i, c := range name {
			if c == '/' {
				parents[name[:i]] = true
			}
		}
	}
	some := outcomes{}
	for name, status := range o {
		// A parent may fail by itself.
		if !parents[name] || status == "FAIL" && !o.failedBelow(name) {
			some[name] = status
		}
	}
	return some
}

func (o outcomes) failedBelow(parent string) bool {
	for name, status := range o {
		if status == "FAIL" && strings.HasPrefix(name, parent+"/") {
			return true
		}
	}
	return false
}

func (o outcomes) count() string {
	n := map[string]int{}
	for _, status := range o {
		n[status]++
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped", n["PASS"], n["FAIL"], n["SKIP"])
}

// noMemory limits an entry to machines where memory is neither limited nor measured.
const noMemory = "no memory controller"

// readList reads a list; a third column, noMemory, makes an entry count only where memory is
// false.
func readList(file string, memory bool) (list, error) {
	return lists.Read(file, func(condition string) (bool, error) {
		if condition != noMemory {
			return false, fmt.Errorf("unknown condition %q", condition)
		}
		return !memory, nil
	})
}

// pattern returns what -test.skip wants for the names.
func (l list) pattern() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(l)) {
		parts := strings.Split(name, "/")
		for i, part := range parts {
			parts[i] = "^" + regexp.QuoteMeta(part) + "$"
		}
		all = append(all, strings.Join(parts, "/"))
	}
	return strings.Join(all, "|")
}

// compare returns what is not as the lists say, in words. The names are all tests of
// the binary; those of skip were not run.
func compare(names []string, results outcomes, known, skip list) (problems []string) {
	leaves := results.leaves()
	for name, status := range leaves {
		_, mayFail := known[name]
		switch {
		case status == "FAIL" && !mayFail:
			problems = append(problems, "failed: "+name)
		case status == "SKIP":
			problems = append(problems, "skipped itself: "+name+": put it into not-applicable.txt, with the reason, or give it what it wants")
		case status == "PASS" && mayFail:
			problems = append(problems, "passes now: take it out of known-failures.txt: "+name)
		}
	}
	for _, name := range names {
		_, skipped := skip[name]
		if _, ran := results[name]; !ran && !skipped {
			problems = append(problems, "did not end: "+name)
		}
	}
	for name := range known {
		if _, ran := leaves[name]; !ran {
			problems = append(problems, "listed, and no such test has run: "+name)
		}
	}
	for name := range skip {
		top, _, _ := strings.Cut(name, "/")
		if !slices.Contains(names, top) {
			problems = append(problems, "listed, and no such test: "+name)
		}
	}
	slices.Sort(problems)
	return problems
}

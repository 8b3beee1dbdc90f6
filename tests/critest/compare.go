package critest

import (
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/lists"
)

// outcome of one spec.
type outcome struct {
	status string // "passed", "failed", "skipped"
	words  string // the first line of the failure
}

// outcomes by spec name.
type outcomes map[string]outcome

// list is a committed list: spec name → reason.
type list map[string]string

// report is the part of JUnit's format, as ginkgo writes it, that is read here.
type report struct {
	Suites []struct {
		Cases []struct {
			Name    string    `xml:"name,attr"`
			Status  string    `xml:"status,attr"`
			Failure *struct { // failed
				Message string `xml:"message,attr"`
			} `xml:"failure"`
			Error *struct { // panicked, timed out, interrupted
				Message string `xml:"message,attr"`
			} `xml:"error"`
			Skipped *struct{} `xml:"skipped"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// parse reads ginkgo's JUnit report. Benchmarks and what belongs to no spec
// (BeforeSuite, reports) are left out, unless it failed.
func parse(data []byte) (outcomes, error) {
	var r report
	if err := xml.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("critest's report: %w", err)
	}
	results := outcomes{}
	for _, suite := range r.Suites {
		for _, c := range suite.Cases {
			o := outcome{status: "passed"}
			switch {
			case c.Failure != nil:
				o = outcome{"failed", firstLine(c.Failure.Message)}
			case c.Error != nil:
				o = outcome{"failed", c.Status + ": " + firstLine(c.Error.Message)}
			case c.Skipped != nil:
				o.status = "skipped"
			}
			name, isSpec := strings.CutPrefix(c.Name, "[It] ")
			name = strings.Join(strings.Fields(name), " ")
			if strings.Contains(name, "enchmark") || (!isSpec && o.status != "failed") {
				continue
			}
			if _, twice := results[name]; twice {
				return nil, fmt.Errorf("two specs are named %q", name)
			}
			results[name] = o
		}
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("critest's report has no spec in it")
	}
	return results, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// machine is what only some machines have.
type machine struct {
	memory   bool // limits on memory can be set
	internet bool // public registries are reached
	appArmor bool // the kernel has it, and an administrator loads critest's profiles
}

// here is this machine.
func here() machine { return machine{memory: memoryDelegated(), internet: internet()} }

// readList reads a list; a third column limits an entry to machines that lack something.
func readList(file string, m machine) (list, error) { return lists.Read(file, m.lacks) }

// lacks reports whether the machine is without something that only some have.
func (m machine) lacks(condition string) (bool, error) {
	switch condition {
	case "no memory controller":
		return !m.memory, nil
	case "no internet":
		return !m.internet, nil
	case "no AppArmor":
		return !m.appArmor, nil
	}
	return false, fmt.Errorf("unknown condition %q", condition)
}

// internet reports whether the public registry answers, with whatever status. It is
// asked once.
var internet = sync.OnceValue(func() bool {
	client := http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://gcr.io/v2/")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return true
})

// memoryDelegated reports whether this process may limit memory: its cgroup is in
// a version 2 hierarchy, is this user's, and has the memory controller.
func memoryDelegated() bool {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false
	}
	_, path, found := strings.Cut(string(data), "0::")
	if !found {
		return false
	}
	dir := "/sys/fs/cgroup" + strings.TrimSpace(path)
	controllers, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil || !slices.Contains(strings.Fields(string(controllers)), "memory") {
		return false
	}
	return unix.Access(dir+"/cgroup.procs", unix.W_OK) == nil
}

// compare returns what is not as the lists say, in words.
func compare(results outcomes, known, allowed list) (problems []string) {
	for name, o := range results {
		_, mayFail := known[name]
		_, maySkip := allowed[name]
		switch {
		case o.status == "failed" && !mayFail:
			problems = append(problems, fmt.Sprintf("failed: %s: %s", name, o.words))
		case o.status == "skipped" && !maySkip && !mayFail:
			problems = append(problems, fmt.Sprintf("skipped without being in skipped.txt: %s", name))
		case o.status == "passed" && mayFail:
			problems = append(problems, fmt.Sprintf("passes now: take it out of its list: %s", name))
		}
	}
	for _, names := range []list{known, allowed} {
		for name := range names {
			if _, ran := results[name]; !ran {
				problems = append(problems, fmt.Sprintf("listed, and no such spec: %s", name))
			}
		}
	}
	slices.Sort(problems)
	return problems
}

// Check compares ginkgo's JUnit report with the lists in the directory. The report is
// from a machine where limits on memory can be set and AppArmor profiles be loaded,
// but no public registry is reached. It returns what is not as they say, and a line of
// figures.
func Check(report []byte, dir string) (problems []string, count string, err error) {
	m := machine{memory: true, appArmor: true}
	results, err := parse(report)
	if err != nil {
		return nil, "", err
	}
	known, err := readList(filepath.Join(dir, "known-failures.txt"), m)
	if err != nil {
		return nil, "", err
	}
	conditional, err := readList(filepath.Join(dir, "conditional.txt"), m)
	if err != nil {
		return nil, "", err
	}
	maps.Copy(known, conditional)
	allowed, err := readList(filepath.Join(dir, "skipped.txt"), m)
	if err != nil {
		return nil, "", err
	}
	return compare(results, known, allowed), results.count(), nil
}

func (o outcomes) count() string {
	n := map[string]int{}
	for _, r := range o {
		n[r.status]++
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped", n["passed"], n["failed"], n["skipped"])
}

func (o outcomes) only(pattern *regexp.Regexp) outcomes {
	some := outcomes{}
	for name, r := range o {
		if pattern.MatchString(name) {
			some[name] = r
		}
	}
	return some
}

func (l list) only(pattern *regexp.Regexp) list {
	some := list{}
	for name, reason := range l {
		if pattern.MatchString(name) {
			some[name] = reason
		}
	}
	return some
}

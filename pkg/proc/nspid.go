package proc

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// NamespacePIDs returns the numbers of a process in our PID namespace and in each further
// one that it is in, outermost first (NSpid of proc_pid_status(5)). There is at least one.
func NamespacePIDs(pid int) ([]int, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/status"
	text, err := os.ReadFile(path) // which also has the process's groups, of any number
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(text) {
		ids, found := strings.CutPrefix(string(line), "NSpid:")
		if !found {
			continue
		}
		var pids []int
		for _, f := range strings.Fields(ids) {
			n, err := strconv.Atoi(f)
			if err != nil {
				return nil, fmt.Errorf("read %s: NSpid: %w", path, err)
			}
			pids = append(pids, n)
		}
		if len(pids) > 0 {
			return pids, nil
		}
	}
	return nil, fmt.Errorf("read %s: it has no NSpid", path)
}

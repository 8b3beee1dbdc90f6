// Package lists reads committed lists of tests that are known to fail, or are not run.
package lists

import (
	"fmt"
	"os"
	"strings"
)

// Read reads lines of "name TAB reason" and returns the reasons by name; # begins a comment
// line. A third column is a condition: such an entry counts only where applies says so.
// Every entry has a reason, and no name stands twice.
func Read(file string, applies func(condition string) (bool, error)) (map[string]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	list, seen := map[string]string{}, map[string]bool{}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		columns := strings.Split(line+"\t\t", "\t")
		name, reason, condition := strings.TrimSpace(columns[0]), strings.TrimSpace(columns[1]), strings.TrimSpace(columns[2])
		if name == "" || reason == "" {
			return nil, fmt.Errorf("%s:%d: want a name, a tab, and the reason", file, number)
		}
		if seen[name] {
			return nil, fmt.Errorf("%s:%d: %q is listed twice", file, number, name)
		}
		seen[name] = true
		if condition != "" {
			here, err := applies(condition)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %w", file, number, err)
			}
			if !here {
				continue
			}
		}
		list[name] = reason
	}
	return list, nil
}

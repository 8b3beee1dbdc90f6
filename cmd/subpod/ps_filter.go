package main

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// psFilter is what --filter asks for: each name must match, by one of its values.
type psFilter struct {
	values map[string][]string
	state  bool // one of them is about containers that do not run
}

// psFilters are the filters of "ps" by name; a row matches a value or not.
var psFilters = map[string]func(r containerRow, value string) bool{
	"id":       func(r containerRow, v string) bool { return strings.HasPrefix(r.ID, v) },
	"name":     func(r containerRow, v string) bool { return matches(v, r.Name) },
	"status":   func(r containerRow, v string) bool { return r.State == v },
	"label":    func(r containerRow, v string) bool { return hasLabel(r.Labels, v) },
	"label!":   func(r containerRow, v string) bool { return !hasLabel(r.Labels, v) },
	"ancestor": func(r containerRow, v string) bool { return isImage(r, v) },
	"pod":      func(r containerRow, v string) bool { return r.Pod == v || strings.HasPrefix(r.PodID, v) },
	"exited":   func(r containerRow, v string) bool { return r.ExitCode != nil && strconv.Itoa(int(*r.ExitCode)) == v },
	"health":   func(r containerRow, v string) bool { return cmp.Or(r.Health, "none") == v },
	"volume": func(r containerRow, v string) bool {
		return slices.ContainsFunc(r.Volumes, func(p string) bool { return p == v || path.Base(p) == v })
	},
	"until": nil, "before": nil, "since": nil, // see apply
}

func psFilterNames() []string {
	var names []string
	for name := range psFilters {
		if name != "label!" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func matches(pattern, name string) bool {
	re, err := regexp.Compile(pattern)
	return err == nil && re.MatchString(name)
}

func hasLabel(labels map[string]string, want string) bool {
	name, value, given := strings.Cut(want, "=")
	has, ok := labels[name]
	return ok && (!given || has == value)
}

// isImage reports whether a container is of the image: by name, with or without its
// registry and tag, or by ID.
func isImage(r containerRow, v string) bool {
	if r.ImageID != "" && len(v) >= 3 && strings.HasPrefix(r.ImageID, strings.TrimPrefix(v, "sha256:")) {
		return true
	}
	base := func(s string) string {
		if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
			return s[:i]
		}
		return s
	}
	return r.Image == v || base(r.Image) == v || strings.HasSuffix(r.Image, "/"+v) || strings.HasSuffix(base(r.Image), "/"+v) || r.Image+":latest" == v
}

func parsePsFilters(list []string) (psFilter, error) {
	f := psFilter{values: map[string][]string{}}
	for _, text := range list {
		name, value, given := strings.Cut(text, "=")
		if strings.HasSuffix(name, "!") && name != "label!" {
			given = false
		}
		if _, ok := psFilters[name]; !ok || !given {
			return f, usagef("invalid --filter %q: expected NAME=VALUE with one of the names %s", text, strings.Join(psFilterNames(), ", "))
		}
		if name == "status" {
			switch value {
			case "created", "running", "exited", statePaused, "unknown":
			case "stopped":
				value = "exited"
			case "initialized", "configured", "removing", "stopping":
				// A state that no container of this runtime is in.
			default:
				return f, usagef("invalid --filter %q: expected created, running, paused or exited", text)
			}
		}
		if name == "name" {
			if _, err := regexp.Compile(value); err != nil {
				return f, usagef("invalid --filter %q: %v", text, err)
			}
		}
		f.state = f.state || name == "status" && value != "running" || name == "exited"
		f.values[name] = append(f.values[name], value)
	}
	return f, nil
}

func (f psFilter) apply(rows []containerRow) ([]containerRow, error) {
	var err error
	keep := func(r containerRow) bool {
		for name, values := range f.values {
			match := psFilters[name]
			if match == nil {
				continue
			}
			some := func(v string) bool { return match(r, v) }
			if name == "label" || name == "label!" { // all of these must match
				if !all(values, some) {
					return false
				}
			} else if !slices.ContainsFunc(values, some) {
				return false
			}
		}
		return true
	}
	all := slices.Clone(rows)
	for _, bound := range []struct {
		name  string
		wants func(created, bound time.Time) bool
	}{
		{"before", time.Time.Before}, {"since", time.Time.After}, {"until", time.Time.Before},
	} {
		for _, v := range f.values[bound.name] {
			var at time.Time
			if bound.name == "until" {
				at, err = parseSince(v, time.Now())
			} else {
				at, err = createdAt(all, v)
			}
			if err != nil {
				return nil, err
			}
			rows = slices.DeleteFunc(slices.Clone(rows), func(r containerRow) bool { return !bound.wants(r.Created, at) })
		}
	}
	return slices.DeleteFunc(slices.Clone(rows), func(r containerRow) bool { return !keep(r) }), nil
}

func all(values []string, holds func(string) bool) bool {
	return !slices.ContainsFunc(values, func(v string) bool { return !holds(v) })
}

func createdAt(rows []containerRow, ref string) (time.Time, error) {
	for _, r := range rows {
		if r.Name == ref || strings.HasPrefix(r.ID, ref) && len(ref) >= 3 {
			return r.Created, nil
		}
	}
	return time.Time{}, usagef("--filter: there is no container %q", ref)
}

// sortRows sorts the rows of "ps"; by their creation they are sorted already.
func sortRows(rows []containerRow, by string) error {
	keys := map[string]func(containerRow) string{
		"command": func(r containerRow) string { return r.Command }, "id": func(r containerRow) string { return r.ID },
		"image": func(r containerRow) string { return r.Image }, "names": func(r containerRow) string { return r.Name },
		"status": containerRow.status,
	}
	key := keys[by]
	if by == "created" || by == "runningfor" {
		return nil
	}
	if key == nil {
		return usagef("invalid --sort %q: expected created, command, id, image, names, runningfor or status", by)
	}
	slices.SortStableFunc(rows, func(a, b containerRow) int { return strings.Compare(key(a), key(b)) })
	return nil
}

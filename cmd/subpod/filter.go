package main

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// filterPattern returns the regular expression that is the value of a filter.
func filterPattern(filter, value string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(value)
	if err != nil {
		return nil, usagef("invalid --filter %q: %v", filter, err)
	}
	return re, nil
}

// filterBool returns the truth value of a filter.
func filterBool(filter, value string) (bool, error) {
	yes, err := strconv.ParseBool(value)
	if err != nil {
		return false, usagef("invalid --filter %q: expected true or false", filter)
	}
	return yes, nil
}

// filtered returns what the filters NAME=VALUE leave of a list: one of those with the same
// name is enough, of labels all must hold, as with Podman. parse returns nil for a name
// that it does not know; names are those that it does.
func filtered[T any](list []T, filters []string, names string, parse func(text, name, value string) (func(T) bool, error)) ([]T, error) {
	groups := map[string][]func(T) bool{}
	for _, text := range filters {
		name, value, given := strings.Cut(text, "=")
		var keep func(T) bool
		if given {
			var err error
			if keep, err = parse(text, name, value); err != nil {
				return nil, err
			}
		}
		if keep == nil {
			return nil, usagef("invalid --filter %q: expected NAME=VALUE with one of the names %s", text, names)
		}
		groups[name] = append(groups[name], keep)
	}
	list = slices.Clone(list)
	for name, group := range groups {
		list = slices.DeleteFunc(list, func(item T) bool {
			holds := func(keep func(T) bool) bool { return keep(item) }
			if name == "label" || name == "label!" {
				return slices.ContainsFunc(group, func(keep func(T) bool) bool { return !keep(item) })
			}
			return !slices.ContainsFunc(group, holds)
		})
	}
	return list, nil
}

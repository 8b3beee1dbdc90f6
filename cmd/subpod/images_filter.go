package main

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"
)

// repository returns the name without the tag, and the tag; "<none>" for what it lacks.
func (r imageRow) repository() (name, tag string) {
	if i := strings.LastIndexByte(r.Name, ':'); i > strings.LastIndexByte(r.Name, '/') {
		return r.Name[:i], r.Name[i+1:]
	}
	return cmp.Or(r.Name, "<none>"), "<none>"
}

func (r imageRow) digest() string {
	if len(r.Digests) == 0 {
		return "<none>"
	}
	_, digest, _ := strings.Cut(r.Digests[0], "@")
	return digest
}

// isReference reports whether a pattern, as of a shell, matches the name of an image: with
// or without its registry, its path and its tag.
func (r imageRow) isReference(pattern string) bool {
	repository, _ := r.repository()
	for _, name := range []string{r.Name, repository} {
		for part := name; part != ""; {
			if ok, err := path.Match(pattern, part); ok && err == nil {
				return true
			}
			_, rest, found := strings.Cut(part, "/")
			if !found {
				break
			}
			part = rest
		}
	}
	return false
}

// filterImages returns the images for which all filters hold.
func filterImages(rows []imageRow, filters []string) ([]imageRow, error) {
	return filtered(rows, filters, "before, dangling, id, label, reference, since, until", func(text, name, value string) (func(imageRow) bool, error) {
		switch name {
		case "dangling":
			yes, err := filterBool(text, value)
			return func(r imageRow) bool { return (r.Name == "") == yes }, err
		case "id":
			return func(r imageRow) bool { return strings.HasPrefix(r.ID, strings.TrimPrefix(value, "sha256:")) }, nil
		case "label":
			return func(r imageRow) bool { return hasLabel(r.labels, value) }, nil
		case "label!":
			return func(r imageRow) bool { return !hasLabel(r.labels, value) }, nil
		case "reference":
			if _, err := path.Match(value, ""); err != nil {
				return nil, usagef("invalid --filter %q: %v", text, err)
			}
			return func(r imageRow) bool { return r.isReference(value) }, nil
		case "until":
			at, err := parseTime("--filter until", value, time.Now())
			return func(r imageRow) bool { return r.Created.Before(at) }, err
		case "before", "since":
			i := slices.IndexFunc(rows, func(r imageRow) bool {
				return r.isReference(value) || len(value) >= 3 && strings.HasPrefix(r.ID, value)
			})
			if i < 0 {
				return nil, usagef("--filter: there is no image %q", value)
			}
			it := rows[i]
			return func(r imageRow) bool { return r.ID != it.ID && r.Created.Before(it.Created) == (name == "before") }, nil
		}
		return nil, nil
	})
}

// sortImages sorts the rows of "images".
func sortImages(rows []imageRow, by string) error {
	var compare func(a, b imageRow) int
	switch by {
	case "name":
		return nil // as they are
	case "repository":
		compare = func(a, b imageRow) int {
			nameA, _ := a.repository()
			nameB, _ := b.repository()
			return strings.Compare(nameA, nameB)
		}
	case "tag":
		compare = func(a, b imageRow) int {
			_, tagA := a.repository()
			_, tagB := b.repository()
			return strings.Compare(tagA, tagB)
		}
	case "created":
		compare = func(a, b imageRow) int { return b.Created.Compare(a.Created) }
	case "id":
		compare = func(a, b imageRow) int { return strings.Compare(a.ID, b.ID) }
	case "size":
		compare = func(a, b imageRow) int { return cmp.Compare(a.Size, b.Size) }
	default:
		return usagef("invalid --sort %q: expected created, id, name, repository, size or tag", by)
	}
	slices.SortStableFunc(rows, compare)
	return nil
}

package config

import (
	"reflect"

	"github.com/pelletier/go-toml/v2/unstable"
)

// field returns the field of struct type t that TOML calls name. Case counts.
func field(t reflect.Type, name string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if f := t.Field(i); f.IsExported() && f.Tag.Get("toml") == name {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// fieldNames returns what TOML calls the fields of struct type t.
func fieldNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		if f := t.Field(i); f.IsExported() {
			names = append(names, f.Tag.Get("toml"))
		}
	}
	return names
}

// accepts reports whether a TOML value of kind k may be decoded into type t.
func accepts(t reflect.Type, k unstable.Kind) bool {
	switch k {
	case unstable.String:
		return isText(t)
	case unstable.Bool:
		return t.Kind() == reflect.Bool
	case unstable.Integer:
		return t.Kind() == reflect.Int
	case unstable.Array:
		return t.Kind() == reflect.Slice
	case unstable.InlineTable:
		return isTable(t)
	}
	return false
}

// describe returns what a value of type t looks like in TOML, for errors.
func describe(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[Duration]():
		return `a duration in quotes such as "90s"`
	case t == reflect.TypeFor[Rate]():
		return `a rate in quotes such as "100M" (bits per second)`
	case t == reflect.TypeFor[Size]():
		return `a size in quotes such as "1Gi" (bytes)`
	case isText(t):
		return "a string"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int:
		return "a whole number"
	case t.Kind() == reflect.Slice:
		return "a list of strings"
	}
	return "a table"
}

// article names a kind of TOML value.
func article(k unstable.Kind) string {
	switch k {
	case unstable.String:
		return "a string"
	case unstable.Bool:
		return "true or false"
	case unstable.Integer:
		return "a whole number"
	case unstable.Float:
		return "a number with a fraction"
	case unstable.Array:
		return "a list"
	case unstable.InlineTable:
		return "a table"
	}
	return "a date or time"
}

// nearest returns the name that differs from s by at most two letters, or "".
func nearest(s string, names []string) string {
	best, found := 3, ""
	for _, n := range names {
		if d := distance(s, n); d < best {
			best, found = d, n
		}
	}
	return found
}

// distance is the edit distance (Levenshtein) of a and b in bytes; lengths
// that differ by more than two, or above 64, count as far.
func distance(a, b string) int {
	if len(a)-len(b) > 2 || len(b)-len(a) > 2 || len(a) > 64 {
		return 99
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

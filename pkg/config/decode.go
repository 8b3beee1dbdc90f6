package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// decode merges the TOML text of file into c and returns what is wrong with it.
//
// The document is checked as a whole for syntax and duplicate keys, then taken
// apart into its assignments, each of which is checked against the fields of
// Config and decoded alone. So every fault is found in one go, and each has a
// place, also those that a decoder reports without one.
func (c *Config) decode(file string, text []byte) []Problem {
	var whole map[string]any
	if err := toml.Unmarshal(text, &whole); err != nil {
		return []Problem{syntaxProblem(file, err)}
	}
	d := decoder{config: c, file: file, text: text}
	for i, b := range text {
		if b == '\n' {
			d.newlines = append(d.newlines, i)
		}
	}
	d.parser.Reset(text)
	for d.parser.NextExpression() {
		d.expression(d.parser.Expression())
	}
	if err := d.parser.Error(); err != nil {
		d.problems = append(d.problems, Problem{File: file, Text: err.Error()})
	}
	return d.problems
}

func syntaxProblem(file string, err error) Problem {
	p := Problem{File: file, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	var at *toml.DecodeError
	if errors.As(err, &at) {
		p.Line, p.Column = at.Position()
		p.Key = strings.Join(at.Key(), ".")
	}
	return p
}

// decoder is the state of one call of Config.decode.
type decoder struct {
	config   *Config
	file     string
	text     []byte
	newlines []int // offsets
	parser   unstable.Parser
	table    []string // that the next assignment is in
	skip     bool     // the table is unknown, and reported
	problems []Problem
}

// at returns the place of a range of the text.
func (d *decoder) at(r unstable.Range) Problem {
	off := int(r.Offset)
	line, _ := slices.BinarySearch(d.newlines, off)
	start := 0
	if line > 0 {
		start = d.newlines[line-1] + 1
	}
	return Problem{File: d.file, Line: line + 1, Column: off - start + 1}
}

func (d *decoder) report(r unstable.Range, key []string, format string, args ...any) {
	p := d.at(r)
	p.Key, p.Text = dotted(key), fmt.Sprintf(format, args...)
	d.problems = append(d.problems, p)
}

// expression handles a table header or an assignment.
func (d *decoder) expression(n *unstable.Node) {
	switch n.Kind {
	case unstable.Table, unstable.ArrayTable:
		keys, place := keyOf(n)
		d.table = keys
		t, known := d.lookup(nil, keys, place)
		d.skip = !known
		if known && (n.Kind == unstable.ArrayTable || !isTable(t)) {
			d.skip = true
			d.report(place, keys, "want %s, not a table", describe(t))
			if isTable(t) {
				d.problems[len(d.problems)-1].Text = "want one table, not an array of tables"
			}
		}
		if !d.skip {
			d.remember(keys, place)
			d.assign(keys, place, unstable.Range{})
		}
	case unstable.KeyValue:
		if d.skip {
			return
		}
		before := len(d.problems)
		keys, place := keyOf(n)
		d.check(d.table, n)
		if len(d.problems) == before {
			d.assign(slices.Concat(d.table, keys), place, n.Raw)
		}
	}
}

// check compares the assignment n inside the table at prefix with the fields of
// Config, down through inline tables.
func (d *decoder) check(prefix []string, n *unstable.Node) {
	keys, place := keyOf(n)
	path := slices.Concat(prefix, keys)
	t, known := d.lookup(prefix, keys, place)
	if !known {
		return
	}
	value := n.Value()
	if !accepts(t, value.Kind) {
		d.report(place, path, "want %s, not %s", describe(t), article(value.Kind))
		return
	}
	d.remember(path, place)
	switch value.Kind {
	case unstable.InlineTable:
		for it := value.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				d.check(path, it.Node())
			}
		}
	case unstable.Array:
		for it := value.Children(); it.Next(); {
			if e := it.Node(); e.Kind != unstable.Comment && !accepts(t.Elem(), e.Kind) {
				d.report(place, path, "want %s, but one element is %s", describe(t), article(e.Kind))
			}
		}
	}
}

// assign decodes one assignment (or an empty table) into the config.
func (d *decoder) assign(path []string, place unstable.Range, raw unstable.Range) {
	var doc bytes.Buffer
	table := d.table
	if len(table) > 0 {
		doc.WriteString("[" + quoteKey(table) + "]\n")
	}
	doc.Write(d.parser.Raw(raw))
	dec := toml.NewDecoder(&doc).DisallowUnknownFields()
	err := dec.Decode(d.config)
	if err == nil {
		return
	}
	text := strings.TrimPrefix(err.Error(), "toml: ")
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		text = "unknown key"
	}
	d.report(place, path, "%s", text)
}

// remember notes where a key was set. Setting a table again does not move what
// stands in it.
func (d *decoder) remember(path []string, place unstable.Range) {
	d.config.origins[dotted(path)] = d.at(place)
}

// lookup returns the type of the field at prefix + keys, and reports a key
// that is not there.
func (d *decoder) lookup(prefix, keys []string, place unstable.Range) (reflect.Type, bool) {
	t := reflect.TypeFor[Config]()
	path := slices.Concat(prefix, keys)
	for i, k := range path {
		switch {
		case !isTable(t):
			d.report(place, path, "%s is %s, not a table", dotted(path[:i]), describe(t))
			return nil, false
		case t.Kind() == reflect.Map:
			t = t.Elem()
		default:
			f, ok := field(t, k)
			if !ok {
				text := "unknown key"
				if near := nearest(k, fieldNames(t)); near != "" {
					text += fmt.Sprintf("; did you mean %q?", near)
				}
				d.report(place, path[:i+1], "%s", text)
				return nil, false
			}
			t = f.Type
		}
	}
	return t, true
}

// keyOf returns the key of a table header or an assignment, and its place.
func keyOf(n *unstable.Node) ([]string, unstable.Range) {
	var keys []string
	var place unstable.Range
	for it := n.Key(); it.Next(); {
		if keys == nil {
			place = it.Node().Raw
		}
		keys = append(keys, string(it.Node().Data))
	}
	return keys, place
}

// dotted joins a key for people.
func dotted(key []string) string { return strings.Join(key, ".") }

// quoteKey joins a key for TOML. Every part is quoted, since a handler may have
// any name.
func quoteKey(key []string) string {
	parts := make([]string, len(key))
	for i, k := range key {
		parts[i] = quote(k)
	}
	return strings.Join(parts, ".")
}

// quote makes a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// assignment makes a line of TOML that sets a key to the value that a flag
// gives: text goes as it is into strings, a list is a TOML array or is split at
// commas.
func assignment(key, value string) (string, error) {
	path := strings.Split(key, ".")
	t := reflect.TypeFor[Config]()
	for _, k := range path {
		switch t.Kind() {
		case reflect.Map:
			t = t.Elem()
		case reflect.Struct:
			f, ok := field(t, k)
			if !ok {
				return "", errors.New("unknown key")
			}
			t = f.Type
		default:
			return "", errors.New("unknown key")
		}
	}
	switch {
	case isTable(t):
		return "", errors.New("is a table: set one of its keys")
	case t.Kind() == reflect.Bool:
		if _, err := strconv.ParseBool(value); err != nil || (value != "true" && value != "false") {
			return "", fmt.Errorf("want true or false, not %q", value)
		}
	case t.Kind() == reflect.Int:
		if _, err := strconv.Atoi(value); err != nil {
			return "", fmt.Errorf("want a number, not %q", value)
		}
	case t.Kind() == reflect.Slice && strings.HasPrefix(value, "["):
	case t.Kind() == reflect.Slice:
		var elems []string
		for e := range strings.SplitSeq(value, ",") {
			if e != "" {
				elems = append(elems, quote(e))
			}
		}
		value = "[" + strings.Join(elems, ", ") + "]"
	default:
		value = quote(value)
	}
	return quoteKey(path) + " = " + value, nil
}

// isText reports whether TOML writes a value of type t as a string.
func isText(t reflect.Type) bool {
	return t.Kind() == reflect.String || reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// isTable reports whether TOML writes a value of type t as a table.
func isTable(t reflect.Type) bool {
	return (t.Kind() == reflect.Struct || t.Kind() == reflect.Map) && !isText(t)
}

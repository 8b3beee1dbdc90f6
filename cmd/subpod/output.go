package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// format is the flag -o of the commands that list or show objects.
type format struct {
	value     string
	noHeading bool // of a table
	// goFormat is --format, with the field names of Podman.
	goFormat string
}

const formatHelp = "output format: table, json, yaml, or go-template=TEMPLATE (for each object)"

func addFormat(cmd *cobra.Command) *format {
	f := &format{}
	cmd.Flags().StringVarP(&f.value, "output", "o", "table", formatHelp)
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml", "go-template="}, cobra.ShellCompDirectiveNoFileComp)))
	return f
}

// addGoFormat adds --format, as Podman and Docker have it: json, or a template in which
// the names of fields begin with a capital, with or without "table" in front.
func (f *format) addGoFormat(cmd *cobra.Command, shorthand string) {
	cmd.Flags().StringVarP(&f.goFormat, "format", shorthand, "", "json, or a template with Podman's names of fields, such as '{{.ID}} {{.Names}}'")
}

// must panics on errors that only a bug in this program can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

const templatePrefix = "go-template="

// check returns an error for an unknown format, before the daemon is contacted.
func (f *format) check() error {
	switch f.goFormat {
	case "":
	case "json":
		f.value = "json"
		return nil
	case "table":
		f.value, f.goFormat = "table", ""
		return nil
	default:
		_, err := parseTemplate(goTemplate(f.goFormat))
		return err
	}
	switch {
	case f.value == "table", f.value == "json", f.value == "yaml", strings.HasPrefix(f.value, templatePrefix):
		return nil
	}
	return usagef("invalid -o %q: expected table, json, yaml or go-template=TEMPLATE", f.value)
}

// column is one column of a table.
type column[T any] struct {
	title string
	value func(T) string
}

// printList prints objects in the requested format.
func printList[T any](w io.Writer, f *format, list []T, columns []column[T]) error {
	if list == nil {
		list = []T{}
	}
	switch {
	case f.goFormat != "" && f.goFormat != "json":
		return printGoFormat(w, f, list, columns)
	case f.value == "json":
		return printJSON(w, list)
	case f.value == "yaml":
		return printYAML(w, list)
	case strings.HasPrefix(f.value, templatePrefix):
		tmpl, err := parseTemplate(strings.TrimPrefix(f.value, templatePrefix))
		if err != nil {
			return err
		}
		for _, item := range list {
			if err := executeTemplate(w, tmpl, item); err != nil {
				return err
			}
		}
		return nil
	}
	return printTable(w, f.noHeading, list, columns)
}

func printTable[T any](w io.Writer, noHeading bool, list []T, columns []column[T]) error {
	rows := make([][]string, 0, len(list)+1)
	if !noHeading {
		titles := make([]string, len(columns))
		for i, c := range columns {
			titles[i] = c.title
		}
		rows = append(rows, titles)
	}
	for _, item := range list {
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = plain(c.value(item))
		}
		rows = append(rows, cells)
	}
	if width := tableWidth(w); width > 0 {
		fit(rows, width)
	}
	tw := tabwriter.NewWriter(w, 0, 8, columnGap, ' ', 0)
	for _, cells := range rows {
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	return tw.Flush()
}

const (
	columnGap = 3
	// leastColumn is the width down to which a narrow terminal makes a column.
	leastColumn = 8
)

// output is a command's standard output. A command whose output is lost, on a full disk say,
// has failed: main looks at err.
type output struct {
	to  io.Writer
	err error // the first
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	n, err := o.to.Write(b)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}

// tableWidth returns the width of the terminal that a table is written to, 0 for another
// file.
func tableWidth(w io.Writer) int {
	if o, ok := w.(*output); ok {
		w = o.to
	}
	if p, ok := w.(plainWriter); ok {
		w = p.to
	}
	f, ok := w.(*os.File)
	if !ok || !isTerminal(f) {
		return 0
	}
	width, _, err := terminalSize(f)
	if err != nil {
		return 0
	}
	return int(width)
}

// fit shortens the cells of the widest columns, so that no line is longer than the
// terminal: one that is broken cannot be read. The first column, the ID, stays.
func fit(rows [][]string, width int) {
	var widths []int
	for _, cells := range rows {
		for i, c := range cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	total := columnGap * (len(widths) - 1)
	for _, n := range widths {
		total += n
	}
	for ; total > width; total-- {
		widest := 0
		for i, n := range widths {
			if i > 0 && n > leastColumn && (widest == 0 || n > widths[widest]) {
				widest = i
			}
		}
		if widest == 0 {
			break
		}
		widths[widest]--
	}
	for _, cells := range rows {
		for i := range cells {
			cells[i] = shorten(cells[i], widths[i])
		}
	}
}

func printJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := io.WriteString(w, plainJSON(b.String()))
	return err
}

func printYAML(w io.Writer, v any) error {
	text, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

func parseTemplate(text string) (*template.Template, error) {
	tmpl, err := template.New("output").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"join":  joined,
		"split": strings.Split,
		"upper": strings.ToUpper,
		"lower": strings.ToLower,
	}).Parse(text)
	if err != nil {
		return nil, usagef("-o go-template: %v", err)
	}
	return tmpl, nil
}

// executeTemplate prints an object with its JSON field names, so that all formats
// have the same names.
// joined joins what a template has: strings, or values of JSON.
func joined(list any, separator string) (string, error) {
	switch list := list.(type) {
	case []string:
		return strings.Join(list, separator), nil
	case []any:
		words := make([]string, len(list))
		for i, v := range list {
			words[i] = fmt.Sprint(v)
		}
		return strings.Join(words, separator), nil
	case nil:
		return "", nil
	}
	return "", fmt.Errorf("join takes a list, not %T", list)
}

func executeTemplate(w io.Writer, tmpl *template.Template, item any) error {
	text, err := json.Marshal(item)
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return err
	}
	var line strings.Builder
	if err := tmpl.Execute(&line, v); err != nil {
		return usagef("-o go-template: %v", err)
	}
	_, err = fmt.Fprintln(w, line.String()) // raw, but on a terminal: it is for scripts
	return err
}

// shortID returns an ID as tables show it.
func shortID(id string) string { return id[:min(12, len(id))] }

// ago returns a time as tables show it.
func ago(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "-"
	}
	return duration(time.Since(t)) + " ago"
}

func duration(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(max(d, 0).Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// bytesText returns a number of bytes as tables show it.
func bytesText(n uint64) string {
	const units = "KMGTP"
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	f, i := float64(n)/1000, 0
	for f >= 999.95 && i < len(units)-1 {
		f /= 1000
		i++
	}
	return fmt.Sprintf("%.1f%cB", f, units[i])
}

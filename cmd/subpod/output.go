package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// format is the flag -o of the commands that list or show objects.
type format struct{ value string }

const formatHelp = "output format: table, json, yaml, or go-template=TEMPLATE (for each object)"

func addFormat(cmd *cobra.Command) *format {
	f := &format{}
	cmd.Flags().StringVarP(&f.value, "output", "o", "table", formatHelp)
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml", "go-template="}, cobra.ShellCompDirectiveNoFileComp)))
	return f
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
	return printTable(w, list, columns)
}

func printTable[T any](w io.Writer, list []T, columns []column[T]) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	fmt.Fprintln(tw, strings.Join(titles, "\t"))
	for _, item := range list {
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = plain(c.value(item))
		}
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	return tw.Flush()
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
		"join":  strings.Join,
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

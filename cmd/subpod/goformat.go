package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// fields are what a template of --format sees of an object.
type fields map[string]any

// Label returns the value of a label, "" without it: {{.Label "NAME"}}.
func (f fields) Label(name string) any {
	switch labels := f["Labels"].(type) {
	case map[string]string:
		return labels[name]
	case map[string]any:
		if v, ok := labels[name]; ok {
			return v
		}
	}
	return ""
}

// named is a row that has fields with Podman's names beside those of its JSON.
type named interface{ fields() map[string]any }

// goTemplate returns the template of --format, without "table", and with escapes as they are
// in a shell's single quotes.
func goTemplate(text string) string {
	text = strings.TrimPrefix(text, tablePrefix)
	return strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
}

// printGoFormat prints each object by a template of --format; with "table" before it, in
// columns below their titles. A field that there is not is an error, as with Podman.
func printGoFormat[T any](w io.Writer, f *format, list []T, columns []column[T]) (err error) {
	tmpl, err := parseTemplate(goTemplate(f.goFormat))
	if err != nil {
		return err
	}
	tmpl.Option("missingkey=error")
	if strings.HasPrefix(f.goFormat, tablePrefix) {
		tw := tabwriter.NewWriter(w, 0, 8, columnGap, ' ', 0)
		defer func() { err = errors.Join(err, tw.Flush()) }()
		w = tw
		first := ""
		if len(columns) > 0 {
			first = columns[0].title
		}
		var line strings.Builder
		// A template that does more than name fields has no titles.
		if !f.noHeading && tmpl.Execute(&line, titlesOf(tmpl, first)) == nil {
			fmt.Fprintln(w, line.String())
		}
	}
	for _, item := range list {
		v, err := fieldsOf(item, columns)
		if err != nil {
			return err
		}
		var line strings.Builder
		if err := tmpl.Execute(&line, v); err != nil {
			return usagef("--format: %v; the fields are %s", err, strings.Join(slices.Sorted(maps.Keys(v)), ", "))
		}
		if _, err := fmt.Fprintln(w, line.String()); err != nil {
			return err
		}
	}
	return nil
}

// fieldsOf returns the fields of an object: those of its JSON with a capital, those that
// Podman has, and the columns of the table.
func fieldsOf[T any](item T, columns []column[T]) (fields, error) {
	text, err := json.Marshal(item)
	if err != nil {
		return nil, err
	}
	var own map[string]any
	if err := json.Unmarshal(text, &own); err != nil {
		return nil, err
	}
	out := fields{}
	for name, v := range own {
		out[strings.ToUpper(name[:1])+name[1:]] = v
	}
	for _, c := range columns {
		title := strings.Fields(strings.ToLower(c.title))
		for i := range title {
			title[i] = strings.ToUpper(title[i][:1]) + title[i][1:]
		}
		if name := strings.Join(title, ""); out[name] == nil {
			out[name] = c.value(item)
		}
	}
	if n, ok := any(item).(named); ok {
		maps.Copy(out, n.fields())
	}
	return out, nil
}

// fields implements named.
func (r containerRow) fields() map[string]any {
	exit := int32(0)
	if r.ExitCode != nil {
		exit = *r.ExitCode
	}
	return map[string]any{
		"ID": shortID(r.ID), "Names": r.Name, "Status": r.status(), "Ports": strings.Join(r.Ports, ", "), "Command": r.Command,
		"CreatedAt": r.Created.Format("2006-01-02 15:04:05 -0700 MST"), "RunningFor": ago(r.Created), "Created": ago(r.Created),
		"ExitCode": exit, "PodName": r.Pod, "Pod": shortID(r.PodID), "ImageID": shortID(r.ImageID), "Mounts": strings.Join(r.Volumes, ","),
		"Exited": r.State == "exited", "Networks": strings.Join(r.Networks, ","),
	}
}

package main

import (
	"strings"
	"text/template"
	"text/template/parse"
	"unicode"
)

// tablePrefix before a template of --format asks for titles above its columns.
const tablePrefix = "table "

// titles are what a template sees in place of an object for the line of titles: each field
// by its title.
type titles map[string]any

// Label is the title of a label's column: its name.
func (titles) Label(name string) string { return strings.ToUpper(name) }

// columnTitles are the titles that do not follow from the fields' names.
var columnTitles = map[string]string{"RunningFor": "CREATED", "CreatedSince": "CREATED", "CPUPerc": "CPU %", "MemPerc": "MEM %"}

// titlesOf returns the titles of the fields that a template names; first is the title of the
// first column of the table, which is the ID's.
func titlesOf(tmpl *template.Template, first string) titles {
	out := titles{}
	walkFields(tmpl.Root, func(path []string) {
		at := out
		for _, name := range path[:len(path)-1] {
			below, ok := at[name].(titles)
			if !ok {
				below = titles{}
				at[name] = below
			}
			at = below
		}
		name := path[len(path)-1]
		title := columnTitles[name]
		switch {
		case title != "":
		case name == "ID" && strings.HasSuffix(first, " ID"):
			title = first
		default:
			title = spaced(name)
		}
		if at[name] == nil && name != "Label" {
			at[name] = title
		}
	})
	return out
}

// walkFields calls found with each chain of fields of the object itself.
func walkFields(node parse.Node, found func([]string)) {
	switch n := node.(type) {
	case *parse.ListNode:
		if n == nil {
			return
		}
		for _, x := range n.Nodes {
			walkFields(x, found)
		}
	case *parse.ActionNode:
		walkFields(n.Pipe, found)
	case *parse.IfNode:
		walkFields(n.Pipe, found)
		walkFields(n.List, found)
		walkFields(n.ElseList, found)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			for _, arg := range c.Args {
				walkFields(arg, found)
			}
		}
	case *parse.FieldNode:
		found(n.Ident)
	}
}

// spaced returns the name of a field as a title: CreatedAt is CREATED AT.
func spaced(name string) string {
	var b strings.Builder
	before := 'A'
	for _, r := range name {
		if unicode.IsUpper(r) && unicode.IsLower(before) {
			b.WriteByte(' ')
		}
		b.WriteRune(unicode.ToUpper(r))
		before = r
	}
	return b.String()
}

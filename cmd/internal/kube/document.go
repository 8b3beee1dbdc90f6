package kube

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Source is a text with manifests: YAML documents, or JSON.
type Source struct {
	Name string // for messages; of a file its path
	Text []byte
}

// MaxManifest bounds the size of all that Parse reads, in bytes.
const MaxManifest = 16 << 20

// object is one object of a source: a YAML document, or an item of a List in one.
type object struct {
	source string
	index  int // of the document, from 1
	node   *yaml.Node
	json   []byte
	marks  []mark // where the values of json stand, in order
	name   string // kind and name, for messages
	key    string // namespace/name
}

// mark is the line of a value and its offset in the JSON.
type mark struct{ offset, line int }

// errorAt returns ErrManifest with the place of a problem. Line 0 is unknown.
func (o *object) errorAt(line int, err error) error {
	where := o.source
	switch {
	case line > 0 && where == "":
		where = fmt.Sprintf("line %d", line)
	case line > 0:
		where = fmt.Sprintf("%s:%d", where, line)
	}
	if o.name != "" {
		err = fmt.Errorf("%s: %w", o.name, err)
	}
	return fmt.Errorf("%w %s (document %d): %w", ErrManifest, where, o.index, err)
}

// problem returns ErrManifest for a problem that begins with its field.
func (o *object) problem(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	field, _, _ := strings.Cut(err.Error(), ": ")
	return o.errorAt(o.line(containerName.ReplaceAllString(field, "")), err)
}

// containerName stands in a problem behind the index of a container or volume.
var containerName = regexp.MustCompile(` \([^)]*\)`)

// documents reads the documents of a source that contain something. Aliases and merge
// keys are resolved within b.
func (src Source) documents(b *budget) ([]*object, error) {
	var docs []*object
	dec := yaml.NewDecoder(bytes.NewReader(src.Text))
	for index := 1; ; index++ {
		root := &yaml.Node{}
		doc := &object{source: src.Name, index: index}
		err := dec.Decode(root)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			line, err := syntaxError(err)
			return docs, doc.errorAt(line, err)
		}
		if len(root.Content) == 0 || root.Content[0].Tag == "!!null" {
			continue
		}
		if doc.node = root.Content[0]; doc.node.Kind != yaml.MappingNode {
			return docs, doc.errorAt(doc.node.Line, errors.New("no object: a mapping with apiVersion, kind and metadata is expected"))
		}
		if err := doc.convert(b); err != nil {
			return docs, err
		}
		docs = append(docs, doc)
	}
}

// convert sets the JSON of the object.
func (o *object) convert(b *budget) error {
	c := converter{budget: b}
	if err := c.value(o.node, 0); err != nil {
		return o.errorAt(c.line, err)
	}
	c.bytes -= c.out.Len()
	o.json, o.marks = c.out.Bytes(), c.marks
	return nil
}

// items returns the objects of a List.
func (o *object) items(b *budget) ([]*object, error) {
	list, _, _ := member(o.node, 0, "items")
	if list == nil || target(list).Kind != yaml.SequenceNode {
		return nil, o.problem("items: a List has a list of objects here")
	}
	var out []*object
	for _, n := range target(list).Content {
		item := &object{source: o.source, index: o.index, node: target(n)}
		if item.node.Kind != yaml.MappingNode {
			return nil, item.errorAt(n.Line, errors.New("no object: a mapping with apiVersion, kind and metadata is expected"))
		}
		if err := item.convert(b); err != nil {
			return nil, err
		}
		out = append(out, item)
	}
	return out, nil
}

// lineAt returns the line of the value at an offset of the JSON.
func (o *object) lineAt(offset int64) int {
	i := sort.Search(len(o.marks), func(i int) bool { return int64(o.marks[i].offset) >= offset })
	if i == 0 {
		return o.node.Line
	}
	return o.marks[i-1].line
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntaxError takes the line out of the message of the YAML parser.
func syntaxError(err error) (line int, out error) {
	text := err.Error()
	m := yamlLine.FindStringSubmatch(text)
	if m == nil {
		return 0, err
	}
	line, _ = strconv.Atoi(m[1]) // 0 where there is none
	return line, errors.New("YAML: " + text[len(m[0]):])
}

// line returns the line of a field such as "spec.containers[0].image", or of what is there
// of its path.
func (o *object) line(path string) int {
	n := o.node
	line := n.Line
	for path != "" {
		n = target(n)
		var next *yaml.Node
		switch n.Kind {
		case yaml.MappingNode:
			next, line, path = member(n, line, strings.TrimPrefix(path, "."))
		case yaml.SequenceNode:
			digits, rest, ok := strings.Cut(strings.TrimPrefix(path, "["), "]")
			i, err := strconv.Atoi(digits)
			if !ok || err != nil || i < 0 || i >= len(n.Content) {
				return line
			}
			next, path = n.Content[i], rest
			line = next.Line
		}
		if next == nil {
			return line
		}
		n = next
	}
	return line
}

// member returns the value in a mapping whose key the path begins with, the line of the
// key, and the rest of the path. Keys can have dots.
func member(n *yaml.Node, line int, path string) (*yaml.Node, int, string) {
	var value *yaml.Node
	longest := -1
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i].Value
		rest, ok := strings.CutPrefix(path, key)
		if ok && len(key) > longest && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			value, line, longest = n.Content[i+1], n.Content[i].Line, len(key)
		}
	}
	if value == nil {
		return nil, line, path
	}
	return value, line, path[longest:]
}

// target returns what an alias stands for.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

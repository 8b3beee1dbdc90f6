package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

const (
	// maxDepth is how deep a document may be nested.
	maxDepth = 200
	// maxNodes and maxJSON bound what the documents become once aliases and merge keys are
	// resolved: a few lines can stand for more than any machine can hold.
	maxNodes = 2 << 20
	maxJSON  = 2 * MaxManifest
)

// budget is what is left of the bounds of all documents.
type budget struct{ nodes, bytes int }

var (
	errTooDeep = fmt.Errorf("nested more than %d deep, or an alias within what it stands for", maxDepth)
	errTooMuch = fmt.Errorf("more than %d values or %d bytes once aliases are resolved", maxNodes, maxJSON)
)

// converter turns a YAML document into JSON, as Kubernetes reads it: of YAML 1.1 are yes,
// no, on and off, and merge keys. Keys are text as it is written. line is where it stopped.
type converter struct {
	*budget
	out   bytes.Buffer
	marks []mark
	line  int
}

func (c *converter) spend(n *yaml.Node, depth int) error {
	c.line = n.Line
	if depth > maxDepth {
		return errTooDeep
	}
	if c.nodes--; c.nodes < 0 || c.out.Len() > c.bytes {
		return errTooMuch
	}
	return nil
}

func (c *converter) value(n *yaml.Node, depth int) error {
	if err := c.spend(n, depth); err != nil {
		return err
	}
	c.marks = append(c.marks, mark{c.out.Len(), n.Line})
	switch n.Kind {
	case yaml.AliasNode:
		return c.value(n.Alias, depth+1)
	case yaml.SequenceNode:
		if n.Tag != "!!seq" {
			return unknownTag(n)
		}
		return c.sequence(n, depth)
	case yaml.MappingNode:
		if n.Tag != "!!map" {
			return unknownTag(n)
		}
		return c.mapping(n, depth)
	}
	return c.scalar(n)
}

func unknownTag(n *yaml.Node) error { return fmt.Errorf("tag %s is not supported", n.Tag) }

func (c *converter) sequence(n *yaml.Node, depth int) error {
	c.out.WriteByte('[')
	for i, item := range n.Content {
		if i > 0 {
			c.out.WriteByte(',')
		}
		if err := c.value(item, depth+1); err != nil {
			return err
		}
	}
	c.out.WriteByte(']')
	return nil
}

func (c *converter) mapping(n *yaml.Node, depth int) error {
	pairs, err := c.pairs(n, depth)
	if err != nil {
		return err
	}
	c.out.WriteByte('{')
	for i, p := range pairs {
		if i > 0 {
			c.out.WriteByte(',')
		}
		c.text(p.key)
		c.out.WriteByte(':')
		if err := c.value(p.value, depth+1); err != nil {
			return err
		}
	}
	c.out.WriteByte('}')
	return nil
}

type pair struct {
	key   string
	value *yaml.Node
}

// pairs returns the keys of a mapping with their values. Those of merge keys come after
// its own, which take precedence, as the first of several merges does.
func (c *converter) pairs(n *yaml.Node, depth int) ([]pair, error) {
	lines := map[string]int{}
	var out []pair
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := target(n.Content[i]), n.Content[i+1]
		if err := c.spend(n.Content[i], depth); err != nil {
			return nil, err
		}
		if key.Tag == "!!merge" {
			merges = append(merges, value)
			continue
		}
		if key.Kind != yaml.ScalarNode || key.Tag == "!!null" {
			return nil, errors.New("a key is not text")
		}
		if first, ok := lines[key.Value]; ok {
			return nil, fmt.Errorf("key %q is already set on line %d", key.Value, first)
		}
		lines[key.Value] = n.Content[i].Line
		out = append(out, pair{key.Value, value})
	}
	for _, m := range merges {
		more, err := c.merged(m, depth+1)
		if err != nil {
			return nil, err
		}
		for _, p := range more {
			if _, ok := lines[p.key]; !ok {
				lines[p.key] = 0
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// merged returns the pairs that the value of a merge key stands for.
func (c *converter) merged(n *yaml.Node, depth int) ([]pair, error) {
	if err := c.spend(n, depth); err != nil {
		return nil, err
	}
	n = target(n)
	switch n.Kind {
	case yaml.MappingNode:
		return c.pairs(n, depth)
	case yaml.SequenceNode:
		var out []pair
		for _, item := range n.Content {
			if target(item).Kind != yaml.MappingNode {
				break
			}
			more, err := c.merged(item, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		}
		return out, nil
	}
	return nil, errors.New("the value of a merge key (<<) is not a mapping or a list of them")
}

func (c *converter) scalar(n *yaml.Node) error {
	plain := n.Style&(yaml.TaggedStyle|yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	switch n.Tag {
	case "!!str", "!!timestamp":
		switch {
		case plain && slices.Contains([]string{"yes", "Yes", "YES", "on", "On", "ON"}, n.Value):
			c.out.WriteString("true")
		case plain && slices.Contains([]string{"no", "No", "NO", "off", "Off", "OFF"}, n.Value):
			c.out.WriteString("false")
		default:
			c.text(n.Value)
		}
		return nil
	case "!!null":
		c.out.WriteString("null")
		return nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			_, err = syntaxError(err)
			return err
		}
		text, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("%q is not a number that JSON has", n.Value)
		}
		c.out.Write(text)
		return nil
	}
	return unknownTag(n)
}

func (c *converter) text(s string) {
	text, _ := json.Marshal(s) // of a string always possible
	c.out.Write(text)
}

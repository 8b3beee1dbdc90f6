package config

import (
	"errors"
	"fmt"
	"strings"
)

// ErrInvalid is what every complaint about the content of a configuration
// wraps, as opposed to a file that cannot be read. The error is an *Error.
var ErrInvalid = errors.New("invalid configuration")

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	File   string // "" for a value that no file set
	Line   int    // from 1; 0: not in a file
	Column int    // from 1, in bytes; 0: not in a file
	Key    string // dotted, such as runtime.handlers.crun.path; "" for a syntax error
	Text   string // what is wrong and what would be right
}

// String formats the problem as "FILE:LINE:COLUMN: KEY: TEXT", without the
// parts that it has not.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key)
		b.WriteString(": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Error holds all problems that were found, in the order of the files.
type Error struct{ Problems []Problem }

// Error lists the problems, one on a line when there are several.
func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return ErrInvalid.Error() + ": " + e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v: %d problems", ErrInvalid, len(e.Problems))
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// Unwrap returns ErrInvalid.
func (e *Error) Unwrap() error { return ErrInvalid }

// origins remembers by dotted key where it was set last.
type origins map[string]Problem

// problem makes a Problem about key, found where the key or, failing that, a
// table that holds it was set last.
func (o origins) problem(key, format string, args ...any) Problem {
	p := Problem{}
	for k := key; ; {
		if at, ok := o[k]; ok {
			p = at
			break
		}
		i := strings.LastIndexByte(k, '.')
		if i < 0 {
			break
		}
		k = k[:i]
	}
	p.Key, p.Text = key, fmt.Sprintf(format, args...)
	return p
}

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestPlain: nothing that a terminal acts on is left of a name that a stranger has chosen.
func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"web":                    "web",
		"größe 容器 🚀":             "größe 容器 🚀",
		"\x1b[2J\x1b]0;title\a":  `\x1b[2J\x1b]0;title\x07`,
		"a\r\nfake line":         `a\x0d\x0afake line`,
		"tab\tcell":              `tab\x09cell`,
		"\u009b31m":              `\u009b31m`,
		"\x9b31m":                `\x9b31m`,
		"\x7f\x00":               `\x7f\x00`,
		"abc\u202efdp.exe":       `abc\u202efdp.exe`,
		"zero\u200bwidth\ufeff":  `zero\u200bwidth\ufeff`,
		"line\u2028paragraph":    `line\u2028paragraph`,
		"tag\U000e0041":          `tag\U000e0041`,
		"half \xf0\x9f a \ufffd": `half \xf0\x9f a \ufffd`,
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %q, want %q", in, got, want)
		}
	}
	if got := plainLines("one\n\ttwo\r\x1b"); got != "one\n\ttwo\\x0d\\x1b" {
		t.Errorf("plainLines: %q", got)
	}
	var out bytes.Buffer
	if n, err := (plainWriter{&out}).Write([]byte("a\x1b\n")); n != 3 || err != nil || out.String() != "a\\x1b\n" {
		t.Errorf("plainWriter: %d, %v, %q", n, err, out.String())
	}
	out.Reset()
	err := printTable(&out, false, []string{"\x1b[1m\tx\ny"}, []column[string]{{"NAME", func(s string) string { return s }}})
	if err != nil || strings.Count(out.String(), "\n") != 2 || strings.ContainsAny(out.String(), "\x1b\t") {
		t.Errorf("table: %q, %v", out.String(), err)
	}
}

// TestPlainJSON: nothing for a terminal is left, and the text means the same.
func TestPlainJSON(t *testing.T) {
	const value = "a\x1b\u009b\x7f\u202e\U000e0041\ufffd größe\n"
	var out bytes.Buffer
	if err := printJSON(&out, map[string]string{"name": value}); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsFunc(out.String(), func(r rune) bool { return unsafeRune(r, "\n") }) {
		t.Errorf("%q", out.String())
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["name"] != value {
		t.Errorf("%q, %v", back, err)
	}
}

// FuzzPlain: the result is text without control characters, whatever the bytes.
func FuzzPlain(f *testing.F) {
	f.Add("a\x1b[\u009b\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := plain(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return unsafeRune(r, "") }) {
			t.Errorf("plain(%q) = %q", s, got)
		}
	})
}

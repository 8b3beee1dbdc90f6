package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// plain returns a text that images, containers or manifests may have chosen as a terminal
// can be given it: what would move the cursor, change colours, the title or the direction
// of writing, or imitate another line, is shown as an escape sequence of Go.
func plain(s string) string { return escape(s, "") }

// plainLines is plain for text of several lines.
func plainLines(s string) string { return escape(s, "\n\t") }

func escape(s, keep string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return unsafeRune(r, keep) }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case !unsafeRune(r, keep):
			b.WriteString(s[:n])
		case r < utf8.RuneSelf:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		s = s[n:]
	}
	return b.String()
}

// plainJSON escapes in a JSON text what the encoder leaves and a terminal may act on: the
// text means the same.
func plainJSON(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return unsafeRune(r, "\n\t") }) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case !unsafeRune(r, "\n\t"):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// unsafeRune reports whether a character controls the terminal: the control characters of
// both ranges, those for the direction of text and invisible ones (Cf), line and paragraph
// separators; what is no character at all.
func unsafeRune(r rune, keep string) bool {
	if strings.ContainsRune(keep, r) {
		return false
	}
	return r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// plainWriter writes plainLines of what it is given.
type plainWriter struct{ to io.Writer }

// Write implements io.Writer.
func (w plainWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(w.to, plainLines(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

package fetch

import (
	"net/http"
	"strings"
)

// challenge of a WWW-Authenticate header (RFC 9110, 11.6.1).
type challenge struct {
	scheme string            // in small letters
	params map[string]string // names in small letters
}

// parseChallenges returns the challenges of an answer: of several headers, and of
// several in one header. What follows something that can't be read is left out.
func parseChallenges(h http.Header) []challenge {
	var all []challenge
	for _, line := range h.Values("WWW-Authenticate") {
		s := scanner(line)
		for {
			s.skip(", \t")
			word := s.word()
			if word == "" {
				break
			}
			s.skip(" \t")
			if !s.next('=') {
				all = append(all, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
				continue
			}
			s.skip(" \t")
			value, ok := s.value()
			if !ok || len(all) == 0 {
				break
			}
			all[len(all)-1].params[strings.ToLower(word)] = value
		}
	}
	return all
}

// scanner is the rest of a header.
type scanner string

func (s *scanner) skip(chars string) { *s = scanner(strings.TrimLeft(string(*s), chars)) }

func (s *scanner) next(c byte) bool {
	if len(*s) == 0 || (*s)[0] != c {
		return false
	}
	*s = (*s)[1:]
	return true
}

// word returns the token (RFC 9110) that the rest begins with, or "".
func (s *scanner) word() string {
	text := string(*s)
	n := strings.IndexFunc(text, func(r rune) bool {
		return r <= ' ' || r >= 127 || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if n < 0 {
		n = len(text)
	}
	*s = scanner(text[n:])
	return text[:n]
}

// value returns a token or a quoted string.
func (s *scanner) value() (string, bool) {
	if !s.next('"') {
		v := s.word()
		return v, v != ""
	}
	var b strings.Builder
	for i := 0; i < len(*s); i++ {
		switch c := (*s)[i]; {
		case c == '"':
			*s = (*s)[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(*s):
			i++
			b.WriteByte((*s)[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

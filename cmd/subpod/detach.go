package main

import (
	"os"
	"strings"
)

// defaultDetachKeys are Podman's and Docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys parses a list of keys: letters, or ctrl- and a letter or one of @[\]^_.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var out []byte
	for key := range strings.SplitSeq(s, ",") {
		name, ctrl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case ctrl && len(name) == 1 && strings.Contains(`abcdefghijklmnopqrstuvwxyz@[\]^_`, name):
			out = append(out, name[0]&0x1f)
		case !ctrl && len(key) == 1 && key[0] > ' ' && key[0] < 0x7f:
			out = append(out, key[0])
		default:
			return nil, usagef("invalid --detach-keys %q: expected keys such as ctrl-p,ctrl-q", s)
		}
	}
	return out, nil
}

// detacher watches for a sequence of keys.
type detacher struct {
	input  *os.File
	keys   []byte // none: never
	detach func()

	seen int // how many of the keys have been typed
}

// Read implements io.Reader.
func (d *detacher) Read(p []byte) (int, error) {
	if len(p) <= len(d.keys) {
		return d.input.Read(p)
	}
	for {
		n, err := d.input.Read(p[:len(p)-len(d.keys)])
		in := append([]byte(nil), p[:n]...)
		out := p[:0:len(p)]
		for _, b := range in {
			if len(d.keys) == 0 {
				out = append(out, b)
				continue
			}
			for d.seen > 0 && b != d.keys[d.seen] {
				out = d.release(out)
			}
			if b != d.keys[d.seen] {
				out = append(out, b)
				continue
			}
			if d.seen++; d.seen == len(d.keys) {
				d.seen = 0
				d.detach()
				return 0, errDetached
			}
		}
		if len(out) > 0 || err != nil {
			return len(out), err
		}
	}
}

// release passes on the first keys that were held back and cannot be the beginning of
// the sequence any more.
func (d *detacher) release(out []byte) []byte {
	held := d.keys[:d.seen]
	for n := d.seen - 1; n >= 0; n-- {
		if string(held[d.seen-n:]) == string(d.keys[:n]) {
			out = append(out, held[:d.seen-n]...)
			d.seen = n
			return out
		}
	}
	return out
}

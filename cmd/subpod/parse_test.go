package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.Local)
	for text, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "0s": now,
		"2026-11-28T10:00:00Z": time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC),
		"2026-11-28T10:00:00":  time.Date(2026, 11, 28, 10, 0, 0, 0, time.Local),
		"2026-11-28":           time.Date(2026, 11, 28, 0, 0, 0, 0, time.Local),
	} {
		if got, err := parseSince(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"yesterday", "-10m", "10", "2026-13-01"} {
		if got, err := parseSince(text, now); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, %v; want errUsage", text, got, err)
		}
	}
}

func TestParseForward(t *testing.T) {
	for text, want := range map[string][2]int{"80": {80, 80}, "8080:80": {8080, 80}, ":80": {0, 80}} {
		if local, remote, err := parseForward(text); err != nil || [2]int{local, remote} != want {
			t.Errorf("%s: %d, %d, %v; want %v", text, local, remote, err, want)
		}
	}
	for _, text := range []string{"", ":", "80:", "x", "0", "70000", "70000:80", "-1:80", "1:2:3"} {
		if local, remote, err := parseForward(text); !errors.Is(err, errUsage) {
			t.Errorf("%q: %d, %d, %v; want errUsage", text, local, remote, err)
		}
	}
}

func TestSplitCopy(t *testing.T) {
	for arg, want := range map[string][2]string{
		"web:/etc": {"web", "/etc"}, "pod/ctr:x": {"pod/ctr", "x"}, "web:": {"web", ""}, "file": {"", "file"},
		"./a:b": {"", "./a:b"}, "/a:b": {"", "/a:b"}, "-": {"", "-"}, ":x": {"", ":x"},
	} {
		if container, path := splitCopy(arg); [2]string{container, path} != want {
			t.Errorf("%s: %q, %q; want %q", arg, container, path, want)
		}
	}
}

func TestLocalTarget(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string][2]string{
		dir: {dir, "base"}, dir + "/": {dir + "/", "base"}, file: {dir, "file"}, dir + "/new": {dir, "new"},
	} {
		if in, name, err := localTarget(to, "base"); err != nil || [2]string{in, name} != want {
			t.Errorf("%s: %q, %q, %v; want %q", to, in, name, err, want)
		}
	}
	for _, to := range []string{dir + "/new/", file + "/x"} {
		if in, name, err := localTarget(to, "base"); err == nil {
			t.Errorf("%s: %q, %q; want an error", to, in, name)
		}
	}
}

func TestAbsoluteSource(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]string{
		"a.tar": here + "/a.tar", "/x/a.tar": "/x/a.tar", "oci:layout:name:v1": "oci:" + here + "/layout:name:v1",
		"docker-archive:/a.tar": "docker-archive:/a.tar", "oci-archive:b/../a.tar": "oci-archive:" + here + "/a.tar",
	} {
		if got, err := absoluteSource(source); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", source, got, err, want)
		}
	}
}

// TestDetacher checks that ctrl-p ctrl-q detaches, wherever the reads end, and that
// every other byte is forwarded.
func TestDetacher(t *testing.T) {
	for typed, want := range map[string]string{
		"hello":                 "hello",
		"a\x10b":                "a\x10b",
		"\x10\x10b":             "\x10\x10b",
		"ab\x10\x11cd":          "ab", // detached
		"\x10\x10\x11":          "\x10",
		"\x11":                  "\x11",
		strings.Repeat("x", 99): strings.Repeat("x", 99),
	} {
		for _, whole := range []bool{true, false} {
			detached := false
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			if whole {
				_, _ = w.WriteString(typed)
				w.Close()
			} else {
				go func() {
					defer w.Close()
					for i := range typed {
						_, _ = w.WriteString(typed[i : i+1])
						time.Sleep(time.Millisecond)
					}
				}()
			}
			d := &detacher{input: r, keys: []byte{'p' & 0x1f, 'q' & 0x1f}, detach: func() { detached = true }}
			var got bytes.Buffer
			buf := make([]byte, 16)
			for err == nil {
				var n int
				n, err = d.Read(buf)
				got.Write(buf[:n])
			}
			r.Close()
			escape := strings.Contains(typed, "\x10\x11")
			if detached != escape || escape && !errors.Is(err, errDetached) {
				t.Errorf("%q, whole %v: detached %v, %v", typed, whole, detached, err)
			}
			// What precedes the escape sequence in the same read is dropped with it.
			if got.String() != want && !(escape && strings.HasPrefix(want, got.String())) {
				t.Errorf("%q, whole %v: %q, want %q", typed, whole, got.String(), want)
			}
		}
	}
}

func TestTexts(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 999: "999B", 1000: "1.0KB", 999_949: "999.9KB", 999_950: "1.0MB", 1_500_000_000: "1.5GB", 1 << 63: "9223.4PB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d bytes: %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 47 * time.Hour: "47h", 48 * time.Hour: "2d"} {
		if got := duration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for text, want := range map[string]string{"short": "short", " a \n b ": "a b", "exactly ten": "exactly t…", "äöüäöüäöüäöü": "äöüäöüäöü…"} {
		if got := shorten(text, 10); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	ranges := []idRange{{0, 1000, 1}, {1, 100000, 65536}}
	if got, want := explainMap(ranges), "0 is 1000 on the host, 1-65536 are 100000-165535"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for id, want := range map[uint32]string{0: "1000", 1: "100000", 65536: "165535", 65537: "none"} {
		if got := hostID(ranges, id); got != want {
			t.Errorf("ID %d: %s, want %s", id, got, want)
		}
	}
	if got := ago(time.Time{}); got != "-" {
		t.Errorf("no time: %q", got)
	}
}

func TestPrintList(t *testing.T) {
	type row struct {
		Name string `json:"name"`
	}
	rows := []row{{"a"}, {"b"}}
	columns := []column[row]{{"NAME", func(r row) string { return r.Name }}}
	for text, want := range map[string]string{
		"table": "NAME\na\nb\n", "json": "[\n  {\n    \"name\": \"a\"\n  },\n  {\n    \"name\": \"b\"\n  }\n]\n",
		"yaml": "- name: a\n- name: b\n", "go-template={{.name | upper}}!": "A!\nB!\n",
	} {
		f := &format{value: text}
		var out bytes.Buffer
		if err := errors.Join(f.check(), printList(&out, f, rows, columns)); err != nil || out.String() != want {
			t.Errorf("%s: %q, %v; want %q", text, out.String(), err, want)
		}
	}
	var out bytes.Buffer
	if err := printList(&out, &format{value: "json"}, nil, columns); err != nil || out.String() != "[]\n" {
		t.Errorf("no rows: %q, %v", out.String(), err)
	}
	for _, text := range []string{"", "xml", "TABLE"} {
		if err := (&format{value: text}).check(); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v; want errUsage", text, err)
		}
	}
	for _, text := range []string{"go-template={{", "go-template={{.name.x.y}}"} {
		if err := printList(&out, &format{value: text}, rows, columns); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v; want errUsage", text, err)
		}
	}
}

// TestFit: a table is as wide as the terminal; the first column, and what fits, stay.
func TestFit(t *testing.T) {
	rows := [][]string{{"ID", "COMMAND", "NAME"}, {"0123456789ab", "a very long command that goes on", "some-name"}}
	fit(rows, 40)
	if rows[1][0] != "0123456789ab" || rows[1][2] != "some-name" || rows[1][1] != "a very long …" {
		t.Errorf("%q", rows)
	}
	whole := [][]string{{"a", "b"}, {"c", "d"}}
	fit(whole, 10)
	if whole[1][1] != "d" {
		t.Errorf("%q", whole)
	}
	fit(rows, 1) // as narrow as it may get
	if rows[1][0] != "0123456789ab" || len([]rune(rows[1][1])) != leastColumn {
		t.Errorf("%q", rows)
	}
}

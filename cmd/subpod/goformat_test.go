package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/subpod/subpod/pkg/api"
)

// TestGoFormat: templates see Podman's fields, and an object can be printed as JSON, also
// where one of its fields is a function.
func TestGoFormat(t *testing.T) {
	rows := []containerRow{{ID: "0123456789abcdef", Name: "web", State: "running", Labels: map[string]string{"a": "1"}}}
	nets := []networkRow{{api.Network{Name: "front", ID: "0123456789abcdef", Labels: map[string]string{"a": "1"}}}}
	for text, want := range map[string]string{
		"{{.ID}} {{.Names}}": "0123456789ab web\n", `table {{.Names}}\t{{.State}}`: "NAMES   STATE\nweb     running\n",
		`table {{.CreatedAt}}|{{.Label "a"}}|{{upper .Image}}`: "CREATED AT|A|IMAGE\n0001-01-01 00:00:00 +0000 UTC|1|\n",
		`{{join (split .Names "e") "-"}}`:                      "w-b\n", `{{join .Volumes "+"}}`: "\n", "table {{range .Labels}}{{.}}{{end}}": "1\n", `{{.Label "a"}}`: "1\n",
		"{{json .Names}}": "\"web\"\n",
	} {
		var b strings.Builder
		if err := printList(&b, &format{goFormat: text}, rows, nil); err != nil || b.String() != want {
			t.Errorf("%s: %q, %v; want %q", text, b.String(), err, want)
		}
	}
	var b strings.Builder
	err := errors.Join(printList(&b, &format{goFormat: "{{json .}}"}, rows, nil), printList(&b, &format{goFormat: "{{json .}}"}, nets, nil))
	for _, part := range []string{`"Names":"web"`, `"ID":"0123456789ab"`, `"Name":"front"`} {
		if err != nil || !strings.Contains(b.String(), part) {
			t.Errorf("{{json .}}: %v; no %s in %s", err, part, b.String())
		}
	}
	if err := printList(&b, &format{goFormat: "{{.Nosuch}}"}, rows, nil); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "Names") {
		t.Errorf("%v", err)
	}
}

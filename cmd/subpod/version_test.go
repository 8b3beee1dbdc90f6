package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/subpod/subpod/pkg/monitor/wire"
	stateformat "github.com/subpod/subpod/pkg/state/format"
)

// TestVersionJSON: the packages' scripts read it.
func TestVersionJSON(t *testing.T) {
	cmd := newRoot()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"version", "--json"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if v["state"] != float64(stateformat.Version) || v["monitor"] != float64(wire.Version) || v["version"] != buildVersion() {
		t.Errorf("%s", out.String())
	}
}

package vm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/subpod/subpod/tests/node"
)

// TestLima: the scripts of configs/lima.yaml make subpod run from an archive, as Lima runs
// them: as root, then as the user, at each start of the machine.
func TestLima(t *testing.T) {
	packaged(t)
	t.Cleanup(func() {
		ctx := context.Background() // the test's has ended by then
		_, _ = machine.Run(ctx, User, "subpod setup --undo; systemctl --user stop subpod")
		_, err := machine.Run(ctx, "root", `cd /usr/local && rm -rf bin/subpod* share/subpod share/doc/subpod lib/systemd/user/subpod.* share/man/man[15]/subpod* &&
			find share -name '*subpod*' -delete; rm -rf /home/`+User+`/archives`)
		if err != nil {
			t.Errorf("remove what was installed: %v", err)
		}
	})
	text, err := os.ReadFile(filepath.Join(node.Tree(), "configs/lima.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var lima struct {
		Provision []struct{ Mode, Script string }
		Probes    []struct{ Script string }
	}
	if err := yaml.Unmarshal(text, &lima); err != nil {
		t.Fatal(err)
	}
	archives, err := filepath.Glob(filepath.Join(node.Tree(), ".cache/vm/packages/subpod-*-linux-amd64.tar.gz"))
	if err != nil || len(archives) != 1 {
		t.Fatalf("archives %q, %v (tests/vm/packages.sh makes one)", archives, err)
	}
	name := filepath.Base(archives[0])
	dir := "/home/" + User + "/archives"
	provision := func(step int) (string, error) {
		t.Helper()
		user := map[string]string{"system": "root", "user": User}[lima.Provision[step].Mode]
		return machine.Run(t.Context(), user, "exec 2>&1; export PARAM_archives="+dir+" LIMA_CIDATA_USER="+User+"\n"+lima.Provision[step].Script)
	}
	if out, err := provision(0); err == nil || !strings.Contains(out, "no subpod-VERSION-linux-amd64.tar.gz in "+dir) {
		t.Errorf("without an archive: %v\n%s", err, out)
	}
	in(t, "mkdir "+dir)
	if err := machine.Send(t.Context(), User, map[string]string{"archives/" + name: archives[0]}); err != nil {
		t.Fatal(err)
	}
	in(t, "cd archives && sha256sum "+name+" | sed 's/^[0-9]/a/; t; s/^./0/' >SHA256SUMS")
	if out, err := provision(0); err == nil || !strings.Contains(out, "is not what SHA256SUMS says") {
		t.Errorf("with another sum: %v\n%s", err, out)
	}
	in(t, "cd archives && sha256sum "+name+" >SHA256SUMS")
	for _, start := range []string{"the first start", "the next start"} {
		for step := range lima.Provision {
			if out, err := provision(step); err != nil {
				t.Fatalf("%s: step %d: %v\n%s", start, step, err, out)
			}
		}
		in(t, lima.Probes[0].Script)
		if out := in(t, "subpod run --rm busybox echo hello"); out != "hello" {
			t.Errorf("%s: run: %q", start, out)
		}
	}
	in(t, "subpod setup --undo")
}

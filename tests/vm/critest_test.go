package vm

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/subpod/subpod/tests/critest"
	"github.com/subpod/subpod/tests/node"
)

// administrator loads the AppArmor profiles that critest wants: it calls "sudo
// apparmor_parser -r -W FILE", and in the node nobody is the machine's root. The
// file is left where the machine's root finds it.
const administrator = `
	mkdir -p /tmp/wanted && chmod 777 /tmp/wanted
	systemctl reset-failed profiles 2>/dev/null
	systemd-run -q --unit=profiles --expand-environment=no bash -c '
		while sleep .1; do for f in /tmp/wanted/*.in; do
			[ -e $f ] && apparmor_parser -r -W $f >${f%.in}.said 2>&1; mv $f ${f%.in}.done
		done 2>/dev/null; done'
	cat >/usr/local/bin/sudo <<'END'
#!/bin/sh
name=$(mktemp -u /tmp/wanted/XXXXXX)
cp "$4" $name.new && mv $name.new $name.in
until [ -e $name.done ]; do sleep .1; done
cat $name.said >&2
END
	chmod +x /usr/local/bin/sudo`

// TestCritest runs the Kubernetes project's validation suite in the node, where
// nothing has to be left out: limits on memory can be set, and the kernel has
// AppArmor.
func TestCritest(t *testing.T) {
	c := start(t, *config)
	if *config == "" {
		checkStatus(t, c, "cgroupfs")
	}
	as(t, "root", administrator)
	t.Cleanup(func() {
		_, err := machine.Run(context.Background(), "root", "systemctl stop profiles; rm -rf /tmp/wanted /usr/local/bin/sudo")
		if err != nil {
			t.Error(err)
		}
	})
	_, err := machine.Run(t.Context(), User, `rm -f ~/junit.xml
		endpoint=unix://`+socket+`
		~/.local/bin/subpod nsenter -- env -C /tmp ~/.local/bin/critest \
			-runtime-endpoint=$endpoint -image-endpoint=$endpoint -runtime-service-timeout=5m \
			-ginkgo.timeout=6h -ginkgo.no-color -ginkgo.junit-report=$HOME/junit.xml >~/critest.log 2>&1 || true`) // minutes
	if err != nil {
		t.Fatal(err)
	}
	problems, count, err := critest.Check([]byte(in(t, "cat ~/junit.xml")), filepath.Join(node.Tree(), "tests/critest"))
	if err != nil {
		t.Fatal(err)
	}
	t.Log("critest:", count)
	for _, problem := range problems {
		t.Error(problem)
	}
	if t.Failed() {
		t.Logf("the end of critest's output:\n%s", in(t, "tail -n 100 ~/critest.log"))
	}
}

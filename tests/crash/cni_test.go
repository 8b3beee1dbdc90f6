package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// TestCNIFails lets a CNI plugin fail, die, hang and fail after its work, at the
// start and at the end of a pod.
func TestCNIFails(t *testing.T) {
	const real = "/usr/lib/cni"
	if _, err := os.Stat(filepath.Join(real, "bridge")); err != nil {
		t.Fatalf("%v: install containernetworking-plugins ('make deps')", err)
	}
	n := node.Prepare(t, node.Options{})
	bin, conf := filepath.Join(n.Dir, "cni"), filepath.Join(n.Dir, "net.d")
	for _, dir := range []string{bin, conf} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The order names the command that it is for: a pod is also removed with CNI.
	script := fmt.Sprintf(`#!/bin/sh
order=%[1]s.$CNI_COMMAND
mv "$order" "$order.$$" 2>/dev/null || exec %[2]s "$@"
read -r what <"$order.$$"
rm -f "$order.$$"
case $what in
fail) echo '{"cniVersion":"1.0.0","code":100,"msg":"sabotage: it fails on purpose"}'; exit 1 ;;
die) kill -KILL $$ ;;
hang) exec sleep 1000 ;;
late) %[2]s "$@" >/dev/null; echo '{"cniVersion":"1.0.0","code":100,"msg":"sabotage: it fails after its work"}'; exit 1 ;;
esac
`, filepath.Join(n.Dir, "cni.order"), filepath.Join(real, "bridge"))
	list := `{"cniVersion":"1.0.0","name":"crash","plugins":[{"type":"saboteur","bridge":"cni0","isGateway":true,"ipMasq":false,
		"ipam":{"type":"host-local","dataDir":"` + filepath.Join(n.Dir, "ipam") + `","ranges":[[{"subnet":"10.87.0.0/24"}]]}}]}`
	for path, text := range map[string]string{filepath.Join(bin, "saboteur"): script, filepath.Join(conf, "10-crash.conflist"): list} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.WriteHome(".config/subpod/subpod.toml", fmt.Sprintf("[network]\nbackend = \"cni\"\ncni_conf_dirs = [%q]\ncni_bin_dirs = [%q, %q]\n", conf, bin, real))
	n.Run()
	r := startedRig(t, n)
	order := func(command, what string) {
		path := filepath.Join(n.Dir, "cni.order."+command)
		if what == "" {
			_ = os.Remove(path)
		} else if err := os.WriteFile(path, []byte(what+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := r.warm()
	for _, command := range []string{"ADD", "DEL"} {
		for _, what := range []string{"fail", "die", "hang", "late"} {
			t.Run(command+" "+what, func(t *testing.T) {
				within := converge
				if command == "DEL" && what == "hang" {
					if testing.Short() {
						t.Skip("a plugin that hangs while a pod is torn down is killed after a minute")
					}
					within = 60*time.Second + converge
				}
				r := r.in(t)
				p := r.newPod(sleeper)
				request := p.run
				if command == "DEL" {
					r.must("up", p.up(t.Context()))
					request = p.removePod
				}
				order(command, what)
				patience := 2 * time.Second
				if what == "fail" { // by itself
					patience = converge
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				begin := time.Now()
				err := request(ctx)
				took := time.Since(begin)
				t.Logf("after %v: %v", took.Round(time.Millisecond), err)
				if what == "fail" && command == "ADD" && (err == nil || !strings.Contains(err.Error(), "on purpose")) {
					t.Errorf("the error does not carry the plugin's words: %v", err)
				}
				order(command, "")
				if command == "ADD" {
					_, err := again(p.run)
					r.must("run again", err)
					r.must("the pod", works(t.Context(), p))
				}
				if took, err := againFor(within, p.removePod); err != nil {
					t.Fatalf("remove: %v after %v", err, took)
				}
				r.must("it is gone", p.gone(t.Context()))
				r.must("all is gone", r.settled(before))
			})
		}
	}
}

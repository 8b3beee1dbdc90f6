package vm

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: dep}
spec:
  replicas: 2
  template:
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: busybox, command: [sh, -c, "echo up >>/e/starts; exec sleep 100000"], volumeMounts: [{name: e, mountPath: /e}]}]
      volumes: [{name: e, emptyDir: {}}]
`

// TestRestartPolicies: after a reboot with the unit enabled what should come back does, by
// its policy and by what its user has last said, with the same name, ID, volumes and ports.
func TestRestartPolicies(t *testing.T) {
	start(t, "")
	as(t, "root", "loginctl enable-linger "+User)
	in(t, `systemctl --user enable -q subpod
		cat >dep.yaml <<'END'
`+deployment+`END
		subpod() { ~/.local/bin/subpod "$@"; }
		subpod rm -f -a >/dev/null # of tests before
		subpod pull -q busybox
		run() { name=$1 restart=$2; shift 2; subpod run -d -q --name $name --restart $restart -v $name:/v "$@" busybox sh -c 'echo up >>/v/starts; echo $PPID >/own; nc -lk -p 80 -e echo $(hostname) & exec sleep 100000' >/dev/null; }
		run always always -p 18080:80
		run always-stopped always
		run unless unless-stopped
		run unless-stopped unless-stopped
		run failure on-failure:5
		run failure-stopped on-failure
		run none no
		subpod run -d -q --name failure-done --restart on-failure busybox true >/dev/null
		subpod create -q --name created --restart always busybox sleep 1000 >/dev/null
		subpod stop -t 0 always-stopped unless-stopped failure-stopped >/dev/null
		subpod play -q -d dep.yaml
		for i in $(seq 100); do [ "$(subpod ps -a --format '{{.State}}' -f name=failure-done)" = exited ] && break; sleep 0.3; done`)
	const list = "~/.local/bin/subpod ps -a --no-trunc --format '{{.Names}} {{.ID}}' | sort"
	before := in(t, list)
	reboot(t)
	want := []string{
		"always running", "always-stopped running", "created created", "dep-0/c running", "dep-1/c running", "failure running",
		"failure-done exited", "failure-stopped exited", "none exited", "unless running", "unless-stopped exited",
	}
	var got []string
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) {
		out, err := machine.Run(t.Context(), User, "~/.local/bin/subpod ps -a --format '{{.Names}} {{.State}}' | sort")
		if got = strings.Split(strings.TrimSpace(out), "\n"); err == nil && slices.Equal(got, want) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the reboot: %v\n%s\nwant\n%s", err, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if after := in(t, list); after != before {
		t.Errorf("names and IDs before the reboot:\n%s\nand after it:\n%s", before, after)
	}
	starts := in(t, `for x in always unless failure; do echo $x $(~/.local/bin/subpod exec $x sh -c 'wc -l </v/starts; ls /own'); done
		for x in always-stopped; do echo $x $(~/.local/bin/subpod exec $x sh -c 'wc -l </v/starts'); done
		for x in dep-0 dep-1; do echo $x $(~/.local/bin/subpod exec $x wc -l /e/starts); done`)
	if want := "always 2 /own\nunless 2 /own\nfailure 2 /own\nalways-stopped 2\ndep-0 2 /e/starts\ndep-1 2 /e/starts"; starts != want {
		t.Errorf("how often each has started in its volume:\n%s\nwant\n%s", starts, want)
	}
	if out := in(t, "for i in $(seq 60); do cat </dev/tcp/127.0.0.1/18080 2>/dev/null && exit; sleep 1; done"); out != "always" {
		t.Errorf("the port after the reboot: %q", out)
	}
	in(t, "~/.local/bin/subpod play -q --down dep.yaml; ~/.local/bin/subpod rm -f -a >/dev/null; ~/.local/bin/subpod volume prune -f >/dev/null; systemctl --user disable -q subpod")
}

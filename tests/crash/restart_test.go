package crash

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
)

// runs counts in a named volume how often a container was started.
const runs = `echo x >>/v/runs; exec sleep 1000`

// count returns how often the container of that name was started.
func count(r *rig, name string) int {
	out, err := r.Subpod("unshare", "cat", filepath.Join(r.DataDir, "volumes", name, "runs"))
	if err != nil {
		return 0
	}
	return strings.Count(out, "x")
}

// look returns ID and state of a container, as inspect shows them.
func look(r *rig, name string) (id, state string, err error) {
	out, err := r.Subpod("inspect", name)
	if err != nil {
		return "", "", err
	}
	var found any
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		return "", "", err
	}
	if list, ok := found.([]any); ok && len(list) > 0 {
		found = list[0]
	}
	status, _ := found.(map[string]any)["status"].(map[string]any)
	id, _ = status["id"].(string)
	state, _ = status["state"].(string)
	return id, state, nil
}

func isRunning(r *rig, name string, want bool, times int) func() error {
	return func() error {
		_, state, err := look(r, name)
		if err != nil {
			return err
		}
		if got := state == "CONTAINER_RUNNING"; got != want || count(r, name) != times {
			return fmt.Errorf("%s is %s and was started %d times", name, state, count(r, name))
		}
		return nil
	}
}

// endNode kills the daemon's parent and starts another daemon.
func endNode(t *testing.T, r *rig) {
	t.Helper()
	all := leak.Descendants(r.PID())
	r.must("kill", syscall.Kill(r.PID(), syscall.SIGKILL))
	_ = r.Wait(converge)
	eventually(t, "all processes of the node have ended", converge, func() error { return noneAlive(all) })
	r.Run()
}

// TestRestartPolicies: what each policy makes of the end of a container's process, of the
// server, of a reload and of the node, and what the user has stopped stays stopped.
func TestRestartPolicies(t *testing.T) {
	r := newRig(t, node.Options{})
	before := r.warm()
	policies := []string{"no", "on-failure", "unless-stopped", "always"}
	first := map[string]string{}
	for _, p := range policies {
		out, err := r.Subpod("run", "-d", "--name", p, "--restart", p, "-v", p+":/v", "busybox", "sh", "-c", runs)
		r.must("run", err)
		first[p] = strings.TrimSpace(out)
	}
	times := map[string]int{"no": 1, "on-failure": 1, "unless-stopped": 1, "always": 1}
	check := func(what string, running ...string) {
		t.Helper()
		for _, p := range policies {
			want := false
			for _, x := range running {
				want = want || x == p
			}
			eventually(t, what+": "+p, converge, isRunning(r, p, want, times[p]))
			if id, _, err := look(r, p); err != nil || id != first[p] {
				t.Errorf("%s: the ID of %s is %s, not %s (%v)", what, p, id, first[p], err)
			}
		}
	}
	check("started", policies...)

	r.KillServer()
	check("the server was killed", policies...)
	_, err := r.Subpod("reload")
	r.must("reload", err)
	check("reload", policies...)

	for _, p := range policies { // their processes are killed, by nobody's word
		killInit(t, r, p)
	}
	for _, p := range policies[1:] {
		times[p]++
	}
	check("their processes were killed", policies[1:]...)

	endNode(t, r)
	for _, p := range policies[1:] {
		times[p]++
	}
	check("the node was killed", policies[1:]...)

	for _, p := range policies[1:] {
		_, err := r.Subpod("stop", "-t", "0", p)
		r.must("stop", err)
	}
	check("stopped")
	r.KillServer()
	check("stopped, the server was killed")
	endNode(t, r)
	times["always"]++
	check("stopped, the node was killed", "always")

	_, err = r.Subpod("start", "unless-stopped", "no")
	r.must("start", err)
	times["unless-stopped"]++
	times["no"]++
	check("started again", "always", "unless-stopped", "no")
	for _, p := range policies {
		_, err := r.Subpod("rm", "-f", p)
		r.must("rm", err)
	}
	for _, dir := range []string{"volumes", "play"} { // named volumes stay, and what held files
		_, err := r.Subpod("unshare", "rm", "-rf", filepath.Join(r.DataDir, dir))
		r.must("remove", err)
	}
	r.must("all is gone", r.settled(before))
}

// killInit kills the container's first process, by nobody's word.
func killInit(t *testing.T, r *rig, name string) {
	t.Helper()
	out, err := r.Subpod("inspect", name)
	r.must("inspect", err)
	for line := range strings.Lines(out) {
		var pid int
		if n, _ := fmt.Sscanf(strings.TrimSpace(line), `"pid": %d`, &pid); n == 1 && pid > 1 {
			r.Enter("kill", "-KILL", fmt.Sprint(pid))
			return
		}
	}
	t.Fatalf("no pid in %s", out)
}

const played = `apiVersion: v1
kind: Pod
metadata: {name: played}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - {name: init, image: busybox, command: [sh, -c, "echo i >>/v/order"], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: side, image: busybox, restartPolicy: Always, command: [sh, -c, "echo s >>/v/order; exec sleep 1000"], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, image: busybox, command: [sh, -c, "echo $IP >/v/ip; echo m >>/v/order; exec sleep 1000"], env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}], volumeMounts: [{name: v, mountPath: /v}, {name: conf, mountPath: /conf}, {name: mem, mountPath: /mem}]}
  volumes:
  - {name: v, persistentVolumeClaim: {claimName: played}}
  - {name: conf, secret: {secretName: s}}
  - {name: mem, emptyDir: {medium: Memory}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: played}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {token: t0p}
`

// TestPlayGoesOn: a played pod goes on without its client, and comes back with a new node,
// init containers first.
func TestPlayGoesOn(t *testing.T) {
	r := newRig(t, node.Options{})
	before := r.warm()
	r.WriteHome("pod.yaml", played)
	manifest := filepath.Join(r.Home, "pod.yaml")
	client := r.Command(t.Context(), node.Path(t, node.Subpod), "play", manifest)
	r.must("play", client.Start())
	order := func(want string) func() error {
		return func() error {
			out, err := r.Subpod("unshare", "cat", filepath.Join(r.DataDir, "volumes", "played", "order"))
			if got := strings.ReplaceAll(out, "\n", ""); err != nil || got != want {
				return fmt.Errorf("the order is %q, not %q (%v)", got, want, err)
			}
			return nil
		}
	}
	eventually(t, "up", converge, order("ism"))
	r.must("kill the client", client.Process.Kill())
	_ = client.Wait()
	eventually(t, "it runs", converge, isUp(r, "played/main"))
	killInit(t, r, "played/main")
	eventually(t, "main was restarted", converge, order("ismm"))
	r.KillServer()
	eventually(t, "it runs on", converge, isUp(r, "played/main"))
	killInit(t, r, "played/side")
	eventually(t, "the sidecar was restarted", converge, order("ismms"))
	endNode(t, r)
	eventually(t, "it came back", converge, order("ismmsism"))
	eventually(t, "it runs", converge, isUp(r, "played/main"))
	out, err := r.Subpod("exec", "played/main", "sh", "-c", "cat /conf/token; touch /mem/x; [ $(cat /v/ip) = $(hostname -i) ] && echo same")
	if err != nil || !strings.Contains(out, "t0p") || !strings.Contains(out, "same") {
		t.Errorf("in it: %q, %v", out, err)
	}
	_, err = r.Subpod("play", "--down", manifest)
	r.must("down", err)
	for _, dir := range []string{"volumes", "play"} { // named volumes stay, and what held files
		_, err := r.Subpod("unshare", "rm", "-rf", filepath.Join(r.DataDir, dir))
		r.must("remove", err)
	}
	r.must("all is gone", r.settled(before))
}

func isUp(r *rig, name string) func() error {
	return func() error {
		_, state, err := look(r, name)
		if err == nil && state != "CONTAINER_RUNNING" {
			err = fmt.Errorf("%s is %s", name, state)
		}
		return err
	}
}

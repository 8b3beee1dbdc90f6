package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// badConfigs are configurations with which no server can serve. Each replaces the
// user's file after the node has served.
var badConfigs = []struct{ name, text, says string }{
	{"invalid value", "[images]\npull_timeout = \"1ms\"\n", "pull_timeout"},
	{"not TOML", "[images\n", "subpod.toml"},
	{"unknown key", "[images]\npul_timeout = \"90s\"\n", "pul_timeout"},
	// No command can read the ones above, every command can read the ones below.
	{"valid but unusable", "[runtime]\nconmon_path = \"/nonexistent/conmon\"\n", "conmon"},
	{"other data directory", "[daemon]\ndata_dir = \"~/elsewhere\"\n", "data_dir"},
	{"other run directory", "[daemon]\nrun_dir = \"/tmp/elsewhere\"\n", "run_dir"},
}

// TestBadConfig: the configuration on disk becomes one that no server can serve with,
// and the server is killed, or told to reload. The node and its containers live on,
// requests are answered with the configuration that served last, and Status, the log,
// "subpod info" and "subpod doctor" report it. A good file and a reload end that.
func TestBadConfig(t *testing.T) {
	const good = "[network]\nbackend = \"bridge\"\n"
	r := newRig(t, node.Options{})
	ctx := t.Context()
	before := r.warm()
	p := r.newPod(sleeper)
	r.must("up", p.up(ctx))
	const file = ".config/subpod/subpod.toml"
	kill := func() error { return syscall.Kill(r.Server(), syscall.SIGKILL) }
	hangUp := func() error { return syscall.Kill(r.PID(), syscall.SIGHUP) }
	for i, bad := range badConfigs {
		t.Run(bad.name, func(t *testing.T) {
			r := r.in(t)
			r.WriteHome(file, good+strings.TrimPrefix(bad.text, "[network]\n"))
			how := kill
			if i%2 == 1 {
				how = hangUp
			}
			old := r.Server()
			r.must("end the server", how())
			r.must("the node serves", r.servesAnew(old))
			if err := r.degraded(ctx, bad.says); err != nil {
				t.Error(err)
			}
			if _, err := p.exec(ctx, "true"); err != nil {
				t.Errorf("the container that ran meanwhile: %v", err)
			}
			if i < 3 {
				r.commandsWork(bad.says)
			}
			if i == 0 {
				r.refusesReload(bad.says)
			}
			r.WriteHome(file, good)
			if out, _ := r.Subpod("info"); !strings.Contains(out, "configuration that served last") {
				t.Errorf("info does not report it:\n%s", out)
			}
			if out, _ := r.Subpod("doctor"); !strings.Contains(out, "configuration that served last") {
				t.Errorf("doctor does not report it:\n%s", out)
			}
			_, err := r.Subpod("reload")
			r.must("reload with a good file", err)
			if err := r.degraded(ctx, ""); err != nil {
				t.Error(err)
			}
		})
	}
	if t.Failed() {
		return // there may be no server to ask
	}
	r.must("the container", p.isState(ctx, running))
	// Only a reload can tell that this configuration cannot be served with.
	r.WriteHome(file, good+"[runtime]\nconmon_path = \"/nonexistent/conmon\"\n")
	if out, err := r.Subpod("reload"); err == nil || !strings.Contains(err.Error(), "conmon") {
		t.Errorf("reload with a configuration that no server can serve with: %v\n%s", err, out)
	}
	r.WriteHome(file, good)
	_, err := r.Subpod("reload")
	r.must("reload", err)
	r.must("remove", p.removePod(ctx))
	r.must("all is gone", r.settled(before))
}

// refusesReload: the file is read before the server is stopped.
func (r *rig) refusesReload(says string) {
	r.t.Helper()
	pid := r.Server()
	if _, err := r.Subpod("reload"); err == nil || !strings.Contains(err.Error(), says) {
		r.t.Errorf("reload with a bad file: %v", err)
	}
	if now := r.Server(); now != pid {
		r.t.Errorf("a reload that was refused has replaced server %d by %d", pid, now)
	}
}

// commandsWork: the commands use the configuration that the daemon serves with, and
// doctor reports what is wrong with the file.
func (r *rig) commandsWork(says string) {
	r.t.Helper()
	for _, args := range [][]string{{"ps"}, {"nsenter", "--", "true"}} {
		if out, err := r.Subpod(args...); err != nil {
			r.t.Errorf("subpod %v: %v\n%s", args, err, out)
		}
	}
	if out, err := r.Subpod("doctor", "--quiet"); err == nil || !regexp.MustCompile("(?m)^error +configuration .*"+says).MatchString(out) {
		r.t.Errorf("doctor: %v\n%s", err, out)
	}
}

// servesAnew waits until a server other than old answers.
func (r *rig) servesAnew(old int) error {
	_, err := again(func(ctx context.Context) error {
		select {
		case err := <-r.ended():
			return fmt.Errorf("the daemon has ended: %w", err)
		default:
		}
		if pid := r.Child("subpod-server"); pid == 0 || pid == old {
			return errors.New("no new server")
		}
		_, err := r.cri.Version(ctx, &runtimeapi.VersionRequest{})
		return err
	})
	return err
}

// ended receives how the daemon ended, once it has.
func (r *rig) ended() <-chan error {
	c := make(chan error, 1)
	if syscall.Kill(r.PID(), 0) != nil {
		c <- r.Wait(converge)
	}
	return c
}

// degraded fails unless Status reports the reason, and the runtime is ready; with no
// reason, unless Status reports none.
func (r *rig) degraded(ctx context.Context, reason string) error {
	st, err := r.cri.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return err
	}
	for _, c := range st.Status.Conditions {
		if c.Type != runtimeapi.RuntimeReady {
			continue
		}
		switch {
		case !c.Status:
			return fmt.Errorf("the runtime is not ready: %v", c)
		case reason == "" && c.Message != "":
			return fmt.Errorf("condition of a server with its own configuration: %v", c)
		case !strings.Contains(c.Message, reason):
			return fmt.Errorf("the condition does not say %q: %v", reason, c)
		case !strings.Contains(st.Info["server"], reason):
			return fmt.Errorf("the verbose status does not say %q: %s", reason, st.Info["server"])
		}
		return nil
	}
	return errors.New("no condition RuntimeReady")
}

// TestBadProgram: the server's program is missing, is no program, ends at once, or is
// killed each time, in a node that has served. Its containers go on, and a good program
// is taken as soon as it is there.
func TestBadProgram(t *testing.T) {
	r, dir := copied(t)
	ctx := t.Context()
	before := r.warm()
	p := r.newPod(sleeper)
	r.must("up", p.up(ctx))
	program := filepath.Join(dir, "subpod-server")
	for _, bad := range []struct{ name, text string }{
		{"missing", ""},
		{"no program", "\x7fELF nothing"},
		{"ends at once", "#!/bin/sh\nexit 0\n"},
		{"refuses its configuration", "#!/bin/sh\nexit 78\n"},
		{"is killed", "#!/bin/sh\nkill -KILL $$\n"},
	} {
		t.Run(bad.name, func(t *testing.T) {
			r := r.in(t)
			old := r.Server()
			r.must("remove the program", os.Remove(program))
			if bad.text != "" {
				r.must("install", os.WriteFile(program, []byte(bad.text), 0o755))
			}
			r.must("kill", syscall.Kill(old, syscall.SIGKILL))
			eventually(t, "the supervisor has tried more often than in a node that never served", converge, func() error {
				log := r.Log()
				last := log[max(strings.LastIndex(log, "msg=serving"), 0):]
				if n := strings.Count(last, "the server has ended"); n < 5 {
					return fmt.Errorf("%d times", n)
				}
				return nil
			})
			if err := syscall.Kill(r.PID(), 0); err != nil {
				t.Fatalf("the daemon: %v", err)
			}
			replace(t, node.Path(t, "bin/subpod-server"), program, "")
			r.must("the node serves", r.servesAnew(old))
			_, err := p.exec(ctx, "true")
			r.must("the container that ran meanwhile", err)
		})
	}
	r.must("remove", p.removePod(ctx))
	r.must("all is gone", r.settled(before))
}

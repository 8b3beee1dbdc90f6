package vm

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

var pods = flag.Int("pods", 50, "pods that run during the upgrade of TestPackageUpgrade")

// packaged gives the machine no subpod in the user's home, and these packages of
// packages.sh in root's. What the other tests use is there again afterwards.
func packaged(t *testing.T, packages ...string) {
	t.Helper()
	purge := `export DEBIAN_FRONTEND=noninteractive; dpkg -s subpod >/dev/null 2>&1 && apt-get purge -y -q subpod >/dev/null 2>&1; true`
	in(t, `systemctl --user stop subpod 2>/dev/null; systemctl --user disable subpod 2>/dev/null
		rm -rf ~/.local/bin/subpod* ~/.config/systemd/user/subpod* ~/.config/subpod; systemctl --user daemon-reload`)
	as(t, "root", purge)
	files := map[string]string{}
	for _, name := range packages {
		files[name] = filepath.Join(node.Tree(), ".cache/vm/packages", name)
	}
	if err := machine.Send(t.Context(), "root", files); err != nil {
		t.Fatalf("%v (tests/vm/packages.sh makes them)", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := machine.Run(context.Background(), User, "journalctl --user -u subpod --no-pager -n 60 -o cat; systemctl --user status subpod --no-pager -n 0")
			t.Logf("the end of the daemon's log:\n%s", log)
		}
		ctx := context.Background()
		_, _ = machine.Run(ctx, User, "subpod setup --undo; systemctl --user stop subpod; rm -rf ~/.config/subpod")
		_, _ = machine.Run(ctx, "root", purge+"; loginctl enable-linger "+User)
		if err := install(ctx, imagesAddr); err != nil {
			t.Errorf("put back what other tests use: %v", err)
		}
	})
}

// aptInstall installs a package, which must succeed, and returns what was printed.
func aptInstall(t *testing.T, deb string) string {
	t.Helper()
	return as(t, "root", "export DEBIAN_FRONTEND=noninteractive; apt-get install -y -q --allow-downgrades ./"+deb+" 2>&1")
}

// wants fails where one of the texts is missing.
func wants(t *testing.T, what, got string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(got, text) {
			t.Errorf("%s has no %q:\n%s", what, text, got)
		}
	}
}

// TestPackageSetup: a package, two commands, and a container runs; setup makes a service
// that outlives the login and a reboot, and takes everything back.
func TestPackageSetup(t *testing.T) {
	packaged(t, "new.deb")
	as(t, "root", "loginctl disable-linger "+User)
	aptInstall(t, "new.deb")
	wants(t, "the package", as(t, "root", "dpkg -L subpod; man_db=1; zcat /usr/share/man/man5/subpod.toml.5.gz | head -n 5"),
		"/usr/bin/subpod-monitor", "/usr/lib/systemd/user/subpod.socket", "SUBPOD.TOML")
	// The profile, for hosts that need it, is one that this AppArmor takes.
	as(t, "root", "apparmor_parser --skip-kernel-load --skip-cache /usr/share/subpod/apparmor.profile")
	if out := in(t, "subpod run --rm busybox echo hello"); out != "hello" {
		t.Errorf("run without setup: %q", out)
	}
	// That has started a daemon of its own.
	if out, err := machine.Run(t.Context(), User, "subpod setup 2>&1"); err == nil || !strings.Contains(out, "outside of systemd") {
		t.Errorf("setup beside a daemon: %v\n%s", err, out)
	}
	in(t, "kill $(cat $XDG_RUNTIME_DIR/subpod/daemon.lock); for i in $(seq 100); do pgrep -x subpod-node >/dev/null || exit 0; sleep .2; done; exit 1")
	wants(t, "the dry run", in(t, "subpod setup --dry-run"), "would enable linger", "would enable and start subpod.service")
	out := in(t, "subpod setup")
	wants(t, "setup", out, "started subpod.service", "crictl.yaml")
	if strings.Contains(out, "wrote: /home/pod/.config/systemd") {
		t.Errorf("setup wrote the unit that the package has:\n%s", out)
	}
	t.Logf("setup:\n%s", out)
	if strings.Contains(out, "linger is not enabled") {
		wants(t, "setup", out, "sudo loginctl enable-linger "+User)
		as(t, "root", "loginctl enable-linger "+User)
	}
	wants(t, "setup again", in(t, "subpod setup"), "linger is enabled", "started subpod.service")
	wants(t, "systemctl status", in(t, "systemctl --user show subpod -p StatusText -p WatchdogUSec -p ActiveState"),
		"ActiveState=active", "StatusText=serving", "WatchdogUSec=10min")
	in(t, "CRI_CONFIG_FILE=~/.config/subpod/crictl.yaml ~/.local/bin/crictl info >/dev/null")
	in(t, "subpod run -d --name web --restart=always busybox sleep 10000")
	reboot(t)
	in(t, "for i in $(seq 300); do systemctl --user is-active -q subpod && exit 0; sleep 1; done; exit 1")
	wants(t, "after the reboot", in(t, "for i in $(seq 100); do subpod ps | grep -q web && break; sleep 1; done; subpod ps"), "web")
	out = in(t, "subpod setup --undo")
	wants(t, "undo", out, "stopped and disabled subpod.service", "removed: /home/pod/.config/subpod/crictl.yaml")
	if left := in(t, "systemctl --user is-active subpod; find ~/.config/systemd ~/.config/subpod ~/.local/state/subpod ! -type d 2>/dev/null; true"); left != "inactive" {
		t.Errorf("left after undo: %q", left)
	}
}

// TestPackageSocket: with --on-demand the first client of the socket starts the daemon, and
// a client that comes during a reload waits.
func TestPackageSocket(t *testing.T) {
	packaged(t, "fast.deb")
	aptInstall(t, "fast.deb")
	wants(t, "setup", in(t, "subpod setup --on-demand"), "started subpod.socket")
	if state := in(t, "systemctl --user is-active subpod.service; true"); state != "inactive" {
		t.Errorf("before the first client the service is %s", state)
	}
	in(t, "subpod ps; systemctl --user is-active subpod.service")
	before := in(t, "stat -c %i $XDG_RUNTIME_DIR/subpod/subpod.sock")
	in(t, "subpod run -d --name web busybox sleep 10000; systemctl --user reload subpod & for i in $(seq 10); do subpod ps -q >/dev/null || exit 1; done; wait; subpod ps | grep web")
	if after := in(t, "stat -c %i $XDG_RUNTIME_DIR/subpod/subpod.sock"); after != before {
		t.Errorf("the socket is another one after the reload")
	}
	// The service ends, the socket does not, and the next client starts it again.
	in(t, "systemctl --user stop subpod.service; subpod ps; systemctl --user is-active subpod.service")
	in(t, "subpod setup --undo")
	if state := in(t, "systemctl --user is-active subpod.service subpod.socket; true"); state != "inactive\ninactive" {
		t.Errorf("after undo: %s", state)
	}
}

// reboot starts the machine again, and comes back when it lets users in.
func reboot(t *testing.T) {
	t.Helper()
	boot := as(t, User, "cat /proc/sys/kernel/random/boot_id")
	_, _ = machine.Run(t.Context(), "root", "sync; systemctl reboot")
	for _, user := range []string{"root", User} {
		machine.HangUp(user)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	for {
		now, err := machine.Run(ctx, User, "cat /proc/sys/kernel/random/boot_id")
		if err == nil && strings.TrimSpace(now) != boot {
			break
		}
		machine.HangUp(User)
		if ctx.Err() != nil {
			t.Fatalf("the machine does not come back: %v", err)
		}
		time.Sleep(time.Second)
	}
	var err error
	if local, err = machine.Forward(t.Context(), User, socket); err != nil {
		t.Fatal(err)
	}
}

// TestPackageUpgrade: the package of an earlier commit is upgraded with running pods, an
// open exec and a log follower: no container is started again, and no line of a log is
// lost. Back again, the same; and a step back that the state forbids is refused.
func TestPackageUpgrade(t *testing.T) {
	packaged(t, "old.deb", "fast.deb")
	aptInstall(t, "old.deb")
	in(t, "systemctl --user daemon-reload; systemctl --user start subpod; subpod pull -q busybox")
	in(t, fmt.Sprintf(`seq 0 %d | xargs -P 3 -I @ subpod run -d -q --name p@ busybox sh -c '%s' >/dev/null`, *pods-1, ticker("line")))
	inits := func() string { return inits(t, tickerName) }
	before := inits()
	if n := len(strings.Fields(before)); n != *pods {
		t.Fatalf("%d containers run: %q", n, before)
	}
	in(t, `rm -f follow exec; setsid subpod logs -f p0 >follow 2>follow.err </dev/null &
		setsid sh -c '(while :; do echo tick; sleep 1; done) | subpod exec -i p1 sh -c "cat >/tmp/ticks"' >exec 2>&1 </dev/null & sleep 5`)
	unit := in(t, "systemctl --user show -p MainPID subpod")

	upgrade := func(deb, version string) {
		t.Helper()
		out := aptInstall(t, deb)
		if strings.Contains(out, "goes on with the former version") {
			t.Errorf("the daemon was not reloaded:\n%s", out)
		}
		// The former version's reload does not wait for the server that it starts.
		wants(t, "the server's version", in(t, "for i in $(seq 180); do subpod info >/dev/null 2>&1 && break; sleep 1; done; subpod info"), version)
		if after := inits(); after != before {
			t.Errorf("with %s other containers run: %q, was %q", deb, after, before)
		}
		if after := in(t, "systemctl --user show -p MainPID subpod"); after != unit {
			t.Errorf("with %s another daemon runs: %s, was %s", deb, after, unit)
		}
		whole(t, "subpod logs p0")
		in(t, "subpod exec p2 true && subpod run --rm busybox true")
	}
	version := strings.Fields(as(t, "root", "dpkg -I fast.deb | grep ' Version:'"))[1]
	version, _, _ = strings.Cut(version, "~")
	upgrade("fast.deb", version)
	// The unit that runs has no watchdog that the daemon of then would not serve.
	if watchdog := in(t, "systemctl --user show -p WatchdogUSec subpod"); strings.Contains(watchdog, "10min") {
		t.Errorf("the daemon of then has %s", watchdog)
	}
	in(t, "n=$(wc -l <follow); for i in $(seq 60); do [ $(wc -l <follow) -gt $n ] && exit; sleep 1; done; cat follow.err >&2; exit 1")
	whole(t, "cat follow")
	ticks := in(t, "subpod exec p1 sh -c 'wc -l </tmp/ticks; pgrep -f /tmp/ticks | wc -l'")
	t.Logf("the open exec after the upgrade (lines, processes): %q; what its client said: %q", ticks, in(t, "cat exec"))
	upgrade("old.deb", "0.1.0")
	upgrade("fast.deb", version)

	t.Run("refused", func(t *testing.T) {
		server := in(t, "pgrep -x subpod-server")
		// A package whose state the old one cannot read.
		as(t, "root", `mv /usr/bin/subpod /usr/bin/subpod.real
			printf '#!/bin/sh\n[ "$1 $2" = "version --json" ] && { echo "{\\"state\\":2,\\"monitor\\":1}"; exit; }\nexec /usr/bin/subpod.real "$@"\n' >/usr/bin/subpod; chmod 755 /usr/bin/subpod`)
		was := as(t, "root", "dpkg -s subpod | grep -E '^(Version|Status)'; sha256sum /usr/bin/subpod-*")
		out, err := machine.Run(t.Context(), "root", "export DEBIAN_FRONTEND=noninteractive; apt-get install -y -q --allow-downgrades ./old.deb 2>&1")
		if err == nil || !strings.Contains(out, "cannot read the state") || !strings.Contains(out, "nothing was changed") {
			t.Errorf("a package of an older state: %v\n%s", err, out)
		}
		if now := as(t, "root", "dpkg -s subpod | grep -E '^(Version|Status)'; sha256sum /usr/bin/subpod-*"); now != was {
			t.Errorf("after the refusal:\n%s\nwas:\n%s", now, was)
		}
		as(t, "root", "mv /usr/bin/subpod.real /usr/bin/subpod")
		// The same without a package: the state on disk is newer.
		in(t, "echo 2 >~/.local/share/subpod/state.db.version")
		out, err = machine.Run(t.Context(), User, "subpod reload 2>&1")
		if err == nil || !strings.Contains(out, "written by a newer subpod") {
			t.Errorf("reload with a newer state: %v\n%s", err, out)
		}
		if _, err := machine.Run(t.Context(), User, "systemctl --user reload subpod"); err == nil {
			t.Error("systemctl reload with a newer state succeeded")
		}
		in(t, "echo 1 >~/.local/share/subpod/state.db.version; systemctl --user is-active subpod")
		if now := in(t, "pgrep -x subpod-server"); now != server {
			t.Errorf("the refusals cost the server: %s, was %s", now, server)
		}
		if after := inits(); after != before {
			t.Errorf("the refusals cost containers: %q, was %q", after, before)
		}
	})
	in(t, "subpod rm -f $(subpod ps -q) >/dev/null")
}

// whole checks that a command prints the lines 0, 1, 2 … without a gap.
func whole(t *testing.T, command string) {
	t.Helper()
	if out := in(t, command+` | awk '$2 != NR-1 { print "line " NR " is " $0; exit }'`); out != "" {
		t.Errorf("%s: %s", command, out)
	}
	if n := in(t, command+" | wc -l"); n == "0" {
		t.Errorf("%s prints nothing", command)
	}
}

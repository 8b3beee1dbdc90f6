package vm

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

var (
	attach = flag.Int("machine", 0, "use a machine that has its sshd on this loopback port, and leave it running")
	config = flag.String("config", "", "configuration (TOML) of the daemon that critest runs against")
)

// machine is the one that all tests share; local is the socket of its daemon, and
// imagesAddr the registry's address.
var (
	machine    *Machine
	local      string
	imagesAddr string
	// programsSent: the machine has the programs, in the user's directory "programs".
	programsSent bool
)

const (
	socket  = "/run/user/1000/subpod/subpod.sock"
	manager = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service"
	service = manager + "/app.slice/subpod.service"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// The machine is shut down also when the terminal's user has had enough.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	code, err := run(ctx, m)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, m *testing.M) (code int, err error) {
	cache := filepath.Join(node.Tree(), ".cache/vm")
	start := time.Now()
	if *attach != 0 {
		machine, err = Attach(cache, *attach)
	} else {
		machine, err = Boot(ctx, cache, "amd64")
	}
	if err != nil {
		return 1, err
	}
	defer machine.Stop()
	context.AfterFunc(ctx, func() {
		machine.Stop()
		os.Exit(130)
	})
	fmt.Printf("vm: up after %.0f s\n", time.Since(start).Seconds())
	images, err := registry.Start(registry.Options{
		Binary: filepath.Join(node.Tree(), ".cache/images/sysroot/usr/bin/docker-registry"),
		Dir:    filepath.Join(node.Tree(), ".cache/images/made/registry"), ReadOnly: true,
	})
	if err != nil {
		return 1, err
	}
	defer images.Stop()
	imagesAddr = images.Addr
	if err := install(ctx, images.Addr); err != nil {
		return 1, fmt.Errorf("install subpod in the machine: %w", err)
	}
	return m.Run(), nil
}

// install puts the programs, the unit and the configuration into the user's home,
// as an administrator or a packet would.
func install(ctx context.Context, images string) error {
	tree := node.Tree()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	files := map[string]string{}
	if !programsSent {
		for _, name := range []string{"bin/subpod", "bin/subpod-node", "bin/subpod-server", ".cache/bin/crictl", ".cache/bin/critest"} {
			files["programs/"+filepath.Base(name)+".new"] = filepath.Join(tree, name)
		}
	}
	files[".config/systemd/user/subpod.service"] = filepath.Join(tree, "configs/subpod.service")
	registries := filepath.Join(dir, "registries.conf")
	files[".config/containers/registries.conf"] = registries
	// QEMU shows the host's loopback to the machine as 10.0.2.2.
	if err := os.WriteFile(registries, []byte(registry.Conf(strings.Replace(images, "127.0.0.1", "10.0.2.2", 1))), 0o644); err != nil {
		return err
	}
	if err := machine.Send(ctx, User, files); err != nil {
		return err
	}
	// A program that runs cannot be written to, but replaced.
	_, err = machine.Run(ctx, User, `
		cd ~/programs && for f in *.new; do [ ! -e $f ] || mv $f ${f%.new}; done
		mkdir -p ~/.local/bin && ln -f * ~/.local/bin/ || exit
		rm -rf ~/.config/subpod
		systemctl --user daemon-reload`)
	if err != nil {
		return err
	}
	programsSent = true
	local, err = machine.Forward(ctx, User, socket)
	return err
}

// in runs a script in the machine as the user; it must succeed.
func in(t *testing.T, script string) string {
	t.Helper()
	return as(t, User, script)
}

func as(t *testing.T, user, script string) string {
	t.Helper()
	slow := time.AfterFunc(slowScript, func() { fmt.Fprintf(os.Stderr, "vm: after %v at:\n%s\n%s\n", slowScript, script, look()) })
	out, err := machine.Run(t.Context(), user, script)
	slow.Stop()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 255 { // ssh's own
			t.Logf("the connection has ended: %s", look())
		}
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// slowScript is how long a script runs before it is looked at what holds it up.
const slowScript = 3 * time.Minute

// look returns what the machine does, by a connection of its own, and what its kernel says.
func look() string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := machine.connect(ctx, "none", "root", `uptime; systemctl list-jobs; ps -eo pid,ppid,user,stat,etimes,wchan:24,args --sort etimes | head -n 50
		for pid in $(ps -eo pid=,stat= | awk '$2 ~ /^D/ { print $1 }'); do echo $pid: $(cat /proc/$pid/stack); done
		journalctl --no-pager -n 60 -o short-monotonic`)
	out, err := cmd.CombinedOutput()
	return fmt.Sprintf("%s\n%v\nthe end of the console: %s", out, err, machine.consoleTail())
}

// start has the service run with a configuration, and returns a client of it. One that
// runs with it goes on, unless its test has failed: a start takes the machine ten seconds.
// systemctl returns when the server has said that it is ready.
func start(t *testing.T, toml string) *client.Client {
	t.Helper()
	in(t, "mkdir -p ~/.config/subpod && cd ~/.config/subpod && cat >new <<'END'\n"+toml+`
END
		if cmp -s new subpod.toml && systemctl --user is-active -q subpod; then rm new; exit; fi
		mv new subpod.toml && systemctl --user restart subpod`)
	c, err := client.Dial(local)
	if err != nil { // the connection has ended by which it is forwarded
		if local, err = machine.Forward(t.Context(), User, socket); err == nil {
			c, err = client.Dial(local)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if t.Failed() {
			journal, _ := machine.Run(context.Background(), User, "journalctl --user -u subpod --no-pager -n 40 -o cat")
			t.Logf("the end of the daemon's log:\n%s", journal)
			_, _ = machine.Run(context.Background(), User, "systemctl --user stop subpod")
		}
	})
	return c
}

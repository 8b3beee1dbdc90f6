package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/node"
)

// The uplink's program reads what pods send, outside of the node. One that was taken over
// by that finds no file of the user's, and cannot write: a script stands for it. Asked for its
// version, it reads nothing of pods.
func TestUplinkProgramReadsNothing(t *testing.T) {
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); errno != 0 {
		t.Skipf("this kernel has no Landlock: %v", errno)
	}
	for _, view := range []string{"minimal", "full"} {
		t.Run(view, func(t *testing.T) {
			n := node.Prepare(t, node.Options{})
			n.WriteHome(".ssh/id_ed25519", houseSecret)
			script := filepath.Join(n.Home, "tools/slirp4netns")
			n.WriteHome("tools/slirp4netns", fmt.Sprintf(`#!/bin/sh
[ "$1" = --version ] && exit
echo "the program runs" >&2
cat %[1]s/.ssh/id_ed25519 && echo "it has read" >&2
cat /proc/$PPID/root%[1]s/.ssh/id_ed25519 && echo "it has read by its parent" >&2
echo x >%[1]s/planted && echo "it has written" >&2
exit 1
`, n.Home))
			if err := os.Chmod(script, 0o755); err != nil {
				t.Fatal(err)
			}
			n.WriteHome(".config/subpod/subpod.toml", fmt.Sprintf("[node]\nview = %q\nuplink = \"slirp4netns\"\nslirp4netns_path = %q\n", view, script))
			n.Launch()
			if err := n.Wait(node.StartTimeout); err == nil {
				t.Error("the daemon ends without an error although its uplink does not start")
			}
			log := n.Log()
			if !strings.Contains(log, "the program runs") || strings.Contains(log, "it has ") || strings.Contains(log, houseSecret) {
				t.Errorf("the uplink's program has got through:\n%s", log)
			}
			if _, err := os.Stat(filepath.Join(n.Home, "planted")); err == nil {
				t.Error("the uplink's program has written into the home")
			}
		})
	}
}

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

const (
	cliUp      = "subpod run --rm, daemon up"
	cliCold    = "subpod run, no daemon"
	cliVersion = "subpod version (start)"
	cliPodman  = "podman run --rm"
)

// TestBenchCLI measures what a user of the command line waits for, and in the
// same run what crun alone and podman take.
func TestBenchCLI(t *testing.T) {
	config := "[daemon]\nlog_level = \"warn\"\n[network]\nbackend = \"bridge\"\n"
	if *driver != "" {
		config += fmt.Sprintf("[storage]\ndriver = %q\n", *driver)
	}
	n := node.Start(t, node.Options{Config: config})
	if _, err := n.Subpod("pull", "-q", image); err != nil {
		t.Fatal(err)
	}
	took := series{}
	measure := func(name string, runs int, argv ...string) {
		t.Helper()
		for i := range runs + 1 {
			into := took
			if i == 0 {
				into = series{} // warms up
			}
			if err := into.measure(name, func() error { return quiet(n, argv...) }); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond) // what goes on behind it has ended
		}
	}
	subpod := node.Path(t, node.Subpod)
	floor, err := measureFloor(n, *runs)
	if err != nil {
		t.Fatal(err)
	}
	took[floorTrue], took[floorSeccomp] = floor[floorTrue], floor[floorSeccomp]
	measure(cliVersion, *runs, subpod, "version")
	measure(cliUp, *runs, subpod, "run", "--rm", "busybox", "true")
	if podman, err := exec.LookPath("podman"); err == nil {
		if err := benchPodman(n, podman, measure); err != nil {
			t.Logf("podman is left out: %v", err)
		}
	} else {
		t.Log("podman is left out: it is not installed")
	}
	n.Stop()
	measure(cliCold, max(*runs/5, 3), subpod, "run", "--rm", "--ephemeral-node", "busybox", "true")

	fmt.Printf("\n%d runs one after the other, milliseconds\n  %-28s %8s %8s %8s\n", *runs, "", "least", "median", "p95")
	for _, name := range []string{floorTrue, floorSeccomp, cliVersion, cliUp, cliPodman, cliCold} {
		if len(took[name]) > 0 {
			fmt.Printf("  %-28s %8.1f %8.1f %8.1f\n", name, ms(took.at(name, 0)), ms(took.at(name, .5)), ms(took.at(name, .95)))
		}
	}
	for _, floor := range []string{floorTrue, floorSeccomp} {
		fmt.Printf("  %s / %s: %.2f (goal: 1.50)\n", cliUp, floor, float64(took.at(cliUp, .5))/float64(took.at(floor, .5)))
	}
	fmt.Printf("  %s: %.0f ms (goal: 1000)\n", cliCold, ms(took.at(cliCold, .5)))
}

// quiet runs a command of the node's user; its output goes to a file, which no
// process that it leaves behind can hold up.
func quiet(n *node.Node, argv ...string) error {
	out, err := os.CreateTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := n.Command(context.Background(), argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		_, seekErr := out.Seek(0, io.SeekStart)
		words, readErr := io.ReadAll(out)
		return errors.Join(fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, words), seekErr, readErr)
	}
	return nil
}

// benchPodman runs the same image by podman, by crun where that works on this
// host, else by runc.
func benchPodman(n *node.Node, podman string, measure func(string, int, ...string)) (err error) {
	archive := filepath.Join(node.Tree(), node.Images, "busybox.docker.tar")
	base := []string{podman, "--root", filepath.Join(n.Dir, "podman"), "--runroot", filepath.Join(n.XDG, "podman"),
		"--cgroup-manager", "cgroupfs", "--runtime"}
	with := func(runtime string, args ...string) []string {
		return append(append(append([]string{}, base...), runtime), args...)
	}
	defer func() {
		// Podman keeps a process that holds its namespaces.
		err = errors.Join(err, quiet(n, podman, "unshare", "rm", "-rf", filepath.Join(n.Dir, "podman")),
			quiet(n, with("crun", "system", "migrate")...))
	}()
	if err := quiet(n, with("crun", "load", "-i", archive)...); err != nil {
		return err
	}
	var tried error
	// crun refuses hybrid cgroups, runc refuses to go without.
	for _, options := range [][]string{{"crun", "run", "--rm", "--cgroups", "disabled"}, {"runc", "run", "--rm"}} {
		run := append(with(options[0], options[1:]...), "busybox", "true")
		if tried = quiet(n, run...); tried == nil {
			measure(cliPodman, 10, run...)
			return nil
		}
	}
	return tried
}

package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/tests/node"
)

const (
	floorArg  = "-floor"
	floorRun  = "crun run --detach"
	floorExec = "crun exec true"

	floorTrue    = "crun run true"
	floorSeccomp = "crun run true, with seccomp"
)

// measureFloor runs the same command on the same root file system by crun alone,
// in a user namespace with the same IDs.
func measureFloor(n *node.Node, runs int) (series, error) {
	dir := filepath.Join(n.Dir, "floor")
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	layout := filepath.Join(node.Tree(), node.Images, "busybox.oci")
	cmd := exec.Command("unshare", "--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
		self, floorArg, dir, layout, fmt.Sprint(runs))
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+n.XDG)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("floor: %w: %s", err, stderr.String())
	}
	var floor series
	return floor, json.Unmarshal(out, &floor)
}

// floorMain measures inside the namespaces: directory, OCI layout, runs. It
// prints a series as JSON.
func floorMain(args []string) error {
	dir, layout := args[0], args[1]
	var runs int
	if _, err := fmt.Sscan(args[2], &runs); err != nil {
		return err
	}
	if err := unpack(layout, filepath.Join(dir, "rootfs")); err != nil {
		return err
	}
	// crun refuses to run on a hybrid hierarchy: hide it, as the daemon does.
	if _, err := os.Stat("/sys/fs/cgroup/unified"); err == nil {
		if err := run("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup"); err != nil {
			return err
		}
	}
	if err := writeSpec(dir); err != nil {
		return err
	}
	// The runtime's state goes where the daemon has its own, on tmpfs if there is one.
	base := []string{"--cgroup-manager=disabled", "--root", filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "floor")}
	crun := func(args ...string) error { return run("crun", append(append([]string{}, base...), args...)...) }
	took := series{}
	for i := range runs + 1 {
		id := fmt.Sprintf("floor-%d", i)
		to := took
		if i == 0 {
			to = series{} // warms up
		}
		if err := to.measure(floorRun, func() error { return crun("run", "--detach", "--bundle", dir, id) }); err != nil {
			return err
		}
		if err := to.measure(floorExec, func() error { return crun("exec", id, "true") }); err != nil {
			return err
		}
		if err := crun("delete", "--force", id); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	for _, name := range []string{floorTrue, floorSeccomp} {
		bundle := filepath.Join(dir, strings.NewReplacer(" ", "-", ",", "").Replace(name))
		if err := foregroundSpec(dir, bundle, name == floorSeccomp); err != nil {
			return err
		}
		for i := range runs + 1 {
			to := took
			if i == 0 {
				to = series{}
			}
			if err := to.measure(name, func() error { return crun("run", "--bundle", bundle, fmt.Sprintf("true-%d", i)) }); err != nil {
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(took)
}

// foregroundSpec writes the specification of "true", with the default seccomp
// profile if it is asked for: that is most of what "subpod run" confines by.
func foregroundSpec(dir, bundle string, withSeccomp bool) error {
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	spec.Process.Args = []string{"true"}
	spec.Root.Path = filepath.Join(dir, "rootfs")
	if withSeccomp {
		if spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(&spec); err != nil {
			return err
		}
	}
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644)
}

func run(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	// A detached container keeps its streams: not a pipe that Wait would wait for.
	stderr, err := os.CreateTemp("", "floor")
	if err != nil {
		return err
	}
	defer os.Remove(stderr.Name())
	defer stderr.Close()
	cmd.Stderr = stderr
	if err := cmd.Run(); err != nil {
		words, _ := os.ReadFile(stderr.Name())
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, words)
	}
	return nil
}

// unpack extracts the first image of a layout. Its one layer is what the daemon
// runs as well.
func unpack(layout, rootfs string) error {
	read := func(digest string, v any) error {
		data, err := os.ReadFile(blob(layout, digest))
		if err != nil {
			return err
		}
		return json.Unmarshal(data, v)
	}
	type descriptor struct{ Digest string }
	var index struct{ Manifests []descriptor }
	data, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return err
	}
	var manifest struct{ Layers []descriptor }
	if err := read(index.Manifests[0].Digest, &manifest); err != nil {
		return err
	}
	for _, l := range manifest.Layers {
		if err := run("tar", "-xzf", blob(layout, l.Digest), "-C", rootfs); err != nil {
			return err
		}
	}
	return nil
}

func blob(layout, digest string) string {
	return filepath.Join(layout, "blobs", strings.Replace(digest, ":", "/", 1))
}

// writeSpec has crun write its default specification, and changes the command.
func writeSpec(dir string) error {
	cmd := exec.Command("crun", "spec")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("crun spec: %w: %s", err, out)
	}
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	process := spec["process"].(map[string]any)
	process["terminal"] = false
	process["args"] = workload
	spec["root"] = map[string]any{"path": "rootfs", "readonly": false}
	data, err = json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

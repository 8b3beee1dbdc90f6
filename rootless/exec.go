package rootless

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// NodeBinary is the name of a small program that is nothing but Dispatch. Parent,
// child and supervisor live as long as the node: in it they take half of the
// memory that they take in subpod, and a third of what they take in the server's.
const NodeBinary = "subpod-node"

// GvisorBinary is NodeBinary with UplinkGvisor, which makes it nearly twice as big.
const GvisorBinary = "subpod-node-gvisor"

// Exec replaces this process by NodeBinary, or by GvisorBinary for that uplink, found
// beside this executable, which then does what Run does. Where there is none this
// process does so, and ends with the node's exit code. Exec returns only when the start
// itself fails.
func Exec(c Config) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if err := nameUser(c); err != nil {
		return err
	}
	path := filepath.Join(filepath.Dir(exe), NodeBinary)
	// Run refuses a Config that cannot be resolved.
	if r, err := c.resolve(); err == nil && r.resolveUplink(ThisHost()).Uplink == UplinkGvisor {
		path = filepath.Join(filepath.Dir(exe), GvisorBinary)
	}
	if unix.Access(path, unix.X_OK) != nil {
		exit(Run(context.Background(), c))
	}
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the node's configuration: %w", err)
	}
	env := append(cleanEnv(os.Environ()), envRole+"="+roleParent, envConfig+"="+string(b))
	// The arguments stay for those who look at the process list.
	argv := append([]string{path}, os.Args[1:]...)
	return fmt.Errorf("execute %s: %w", path, unix.Exec(path, argv, env))
}

// runParentRole is Run in a process that Exec has made.
func runParentRole(more []UplinkDriver) error {
	c := Config{drivers: more}
	var err error
	if c.outer, err = takeOuter(); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(os.Getenv(envConfig)), &c); err != nil {
		return fmt.Errorf("decode %s: %w", envConfig, err)
	}
	for _, v := range []string{envRole, envConfig} {
		if err := os.Unsetenv(v); err != nil {
			return err
		}
	}
	return Run(context.Background(), c)
}

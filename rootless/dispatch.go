package rootless

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/logging"
)

// Environment of our own re-executions. It is never handed on to the server.
const (
	envPrefix = "_SUBPOD_"
	envPipe   = envPrefix + "NODE_PIPE"   // rootlesskit's handshake; its presence makes a process the child
	envState  = envPrefix + "NODE_DIR"    // rootlesskit's state directory, RunDir/node
	envRole   = envPrefix + "NODE_ROLE"   // one of the roles below
	envConfig = envPrefix + "NODE_CONFIG" // Config as JSON, for roleParent
	envDir    = envPrefix + "WORK_DIR"    // for roleEnter
	envIDs    = envPrefix + "ID_MAPPING"  // Config.IDMapping, for the links of replaceMappers

	// Rootlesskit's keys of socket activation (activation.go); its helper is not used.
	envActivation       = envPrefix + "ACTIVATION"
	envActivationHelper = envPrefix + "ACTIVATION_HELPER"
)

// Roles of a re-executed process.
const (
	roleParent     = "parent"
	roleSupervisor = "supervisor"
	roleNested     = "nested"
	roleEnter      = "enter"
	roleProbe      = "probe"
	roleHolder     = "holder"
	roleConfined   = "confined"
)

// Dispatch takes over a process that this package has started as a part of the
// node and ends it; in any other process it returns at once. It must be the
// first call in main of each binary that calls Run, Exec or Enter. The uplinks are
// those that the binary has beside the ones that all have.
func Dispatch(more ...UplinkDriver) {
	// Rootlesskit makes the detached network namespace by running this binary
	// under the name of unshare(1).
	if filepath.Base(os.Args[0]) == "unshare" {
		exit(runUnshare(os.Args[1:]))
	}
	if os.Getenv(envIDs) != "" {
		switch name := filepath.Base(os.Args[0]); name {
		case linkGetSubIDs, linkNewUIDMap, linkNewGIDMap:
			exit(runMapper(name, os.Args[1:]))
		}
	}
	// The pipe comes before the role: the child sets the role for the process
	// after it, and is itself executed again in between.
	if os.Getenv(envPipe) != "" {
		keepThreads()
		exit(runChild(more))
	}
	switch os.Getenv(envRole) {
	case "":
		return
	case roleParent:
		keepThreads()
		exit(runParentRole(more))
	case roleSupervisor:
		keepThreads()
		exit(runSupervisorRole())
	case roleNested:
		exit(runNestedInit())
	case roleEnter:
		exit(runEnterRole())
	case roleConfined:
		exit(runConfinedRole())
	case roleHolder:
		exit(runHolderRole())
	case roleProbe:
		exit(runProbeRole())
	default:
		exit(fmt.Errorf("unknown %s=%q", envRole, os.Getenv(envRole)))
	}
}

// exit ends the process, with the code of the process that err is about if
// there is one.
func exit(err error) {
	if err == nil {
		logging.Exit(0, "")
	}
	last := ""
	var reported *exitError
	if !errors.As(err, &reported) {
		last = fmt.Sprintf("subpod: %v\n", err)
	}
	logging.Exit(exitCode(err), last)
}

// exitError carries the exit code of a process that has itself reported what was
// wrong.
type exitError struct {
	what string
	code int
}

func (e *exitError) Error() string { return fmt.Sprintf("%s ended with exit code %d", e.what, e.code) }

// exitCode returns the exit code of the process that err is about, or 1.
func exitCode(err error) int {
	var own *exitError
	if errors.As(err, &own) {
		return own.code
	}
	// os/exec has such a type, and others may.
	var sys interface{ Sys() any }
	if errors.As(err, &sys) {
		if ws, ok := sys.Sys().(syscall.WaitStatus); ok && ws.Exited() && ws.ExitStatus() != 0 {
			return ws.ExitStatus()
		}
	}
	return 1
}

// runUnshare is the part of unshare(1) that rootlesskit uses: "-n CMD ARG…"
// runs the command in a new network namespace.
func runUnshare(args []string) error {
	if len(args) < 2 || args[0] != "-n" {
		return fmt.Errorf("unshare %q: only -n COMMAND is known", args)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare the node network namespace: %w", err)
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	return fmt.Errorf("execute %s: %w", path, unix.Exec(path, args[1:], os.Environ()))
}

// cleanEnv returns the environment without the variables of re-executions.
func cleanEnv(env []string) []string {
	var clean []string
	for _, kv := range env {
		if strings.HasPrefix(kv, envPrefix) || strings.HasPrefix(kv, "_ROOTLESSKIT_") {
			continue
		}
		clean = append(clean, kv)
	}
	return clean
}

// withSbin returns PATH with the system directories that an ordinary user's
// often lacks, but where ip(8), nft(8) and others live.
func withSbin(path string) string {
	have := filepath.SplitList(path)
	for _, d := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		found := false
		for _, h := range have {
			found = found || h == d
		}
		if !found {
			have = append(have, d)
		}
	}
	return strings.Join(have, string(os.PathListSeparator))
}

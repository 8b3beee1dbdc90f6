package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/errclass"
)

var (
	// ErrNotRunning is returned when the container's init has ended, or was not
	// started yet where the call needs that.
	ErrNotRunning = errclass.New(errdefs.ErrFailedPrecondition, "container is not running")
	// ErrCommandNotFound is returned when the container has no such executable. It is
	// found with errors.Is in a *RuntimeError.
	ErrCommandNotFound = errclass.New(errdefs.ErrInvalidArgument, "command not found in the container")
	// ErrCommandNotExecutable is returned when the container's command is no file that
	// may be executed. It is found with errors.Is in a *RuntimeError.
	ErrCommandNotExecutable = errclass.New(errdefs.ErrInvalidArgument, "command cannot be executed in the container")
	// ErrWorkingDirectory is returned when the working directory cannot be entered: it is a
	// file, a loop of links, or cannot be made. It is found with errors.Is in a *RuntimeError.
	ErrWorkingDirectory = errclass.New(errdefs.ErrInvalidArgument, "working directory cannot be used")
	// ErrRootfsLost is returned when what serves the container's root file system has ended.
	// It is found with errors.Is in a *RuntimeError.
	ErrRootfsLost = errclass.New(errdefs.ErrFailedPrecondition, "the container's root file system is lost")
	// ErrTimeout is returned when an exec ran longer than its timeout and was killed.
	ErrTimeout = errclass.New(errclass.ErrTimeout, "exec timed out and was killed")
	// ErrRuntimeHangs is returned when a call of the OCI runtime took longer than
	// two minutes and was killed.
	ErrRuntimeHangs = errclass.New(errclass.ErrTimeout, "the OCI runtime hangs and was killed; a hook or a FIFO in the container's file system may have blocked it")
	// ErrRetry is returned by Pending.Create when an option was refused and is
	// off now: a creation that is begun again does without it.
	ErrRetry = errors.New("an option of the OCI runtime was refused and is off now")
	// ErrProcessLimit is returned when a limit of processes keeps a command from being
	// run in a container. The error names the limit.
	ErrProcessLimit = errclass.New(errdefs.ErrResourceExhausted, "the limit of processes is reached")
	// ErrNoHandler is returned for a runtime handler that is not configured.
	ErrNoHandler = errors.New("runtime handler is not configured")
	// ErrNoCgroup is returned when resources cannot be changed because no cgroup is
	// delegated to this node.
	ErrNoCgroup = errors.New("no cgroup is delegated, resource limits cannot be changed")
)

// RuntimeError is a failure that the OCI runtime reported, with its own message.
type RuntimeError struct {
	Op      string // "create", "start", "exec", "update", "delete"
	Handler string
	Message string
	// ExitCode is the runtime's own exit code, -1 where conmon does not report it.
	ExitCode int
}

// Error implements error: who failed at what, and the message of the runtime.
func (e *RuntimeError) Error() string {
	if e.rootfsLost() {
		return fmt.Sprintf("%s %s: %s: %v: its fuse-overlayfs has ended; start the container anew", e.Handler, e.Op, e.Message, ErrRootfsLost)
	}
	if e.Message == "" {
		return fmt.Sprintf("%s %s failed with exit code %d and without a message", e.Handler, e.Op, e.ExitCode)
	}
	return fmt.Sprintf("%s %s: %s", e.Handler, e.Op, e.Message)
}

func (e *RuntimeError) rootfsLost() bool {
	return strings.Contains(strings.ToLower(e.Message), unix.ENOTCONN.Error())
}

// Is makes errors.Is true for ErrCommandNotFound, ErrCommandNotExecutable,
// ErrWorkingDirectory and ErrRootfsLost, the classes of the last two, and for
// the errors of limits (EAGAIN, ENOMEM, ENOSPC, EMFILE) that the message has.
func (e *RuntimeError) Is(target error) bool {
	switch target {
	case ErrCommandNotFound:
		return notFound().MatchString(e.Message)
	case ErrCommandNotExecutable:
		return notExecutable().MatchString(e.Message) && !notFound().MatchString(e.Message)
	case ErrWorkingDirectory, errdefs.ErrInvalidArgument:
		return noDirectory().MatchString(e.Message)
	case ErrRootfsLost, errdefs.ErrFailedPrecondition:
		return e.rootfsLost()
	case unix.EAGAIN, unix.ENOMEM, unix.ENOSPC, unix.EMFILE:
		// Go and the C library differ in the first letter.
		return strings.Contains(strings.ToLower(e.Message), target.Error())
	}
	return false
}

// The messages of crun, of runc for a bare name, and of runc for a path; then those of
// both when the kernel does not find an interpreter or a loader.
var notFound = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile("(?s)executable file (`.*` )?not found in \\$PATH|exec: \".*\": stat .*: no such file or directory|" +
		"exec container process .*: No such file or directory|^exec: No such file or directory|exec /?[^ ]*: no such file or directory")
})

// The messages of crun and runc for a file without the permission, or a directory; then
// those of both for what the kernel does not take for a program.
var notExecutable = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile("(?s)open executable: (Permission denied|Operation not permitted|Is a directory|Not a directory|Too many levels of symbolic links|File name too long)|" +
		"exec(utable)?:? .*(permission denied|(is|not) a directory|too many levels of symbolic links|file name too long)|the path `.*` (is not a regular file|is a directory)|" +
		"exec container process .*: |^exec: |exec /?[^ ]*: (exec format error|text file busy|argument list too long|operation not permitted|too many levels of symbolic links|accessing a corrupted shared library|invalid argument)")
})

// The messages of crun and of runc for a working directory, for each of the ways in which a
// path can be none.
var noDirectory = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile("(?si)(^|[ :])chdir (`|to cwd ).*(no such file or directory|not a directory|too many levels of symbolic links|file name too long|permission denied)")
})

// CommandError returns the error of a create that failed because of the command, from its
// text: ErrCommandNotExecutable or ErrCommandNotFound.
func CommandError(text string) error {
	class := ErrCommandNotFound
	if failed := (&RuntimeError{Message: text}); errors.Is(failed, ErrCommandNotExecutable) {
		class = ErrCommandNotExecutable
	}
	return fmt.Errorf("%w: %s", class, text)
}

// commandError is err with the class of its message, where the runtime or the kernel could
// not execute the command.
func commandError(err error) error {
	for _, class := range []error{ErrCommandNotFound, ErrCommandNotExecutable} {
		if errors.Is(err, class) {
			return fmt.Errorf("%w: %w", class, err)
		}
	}
	return err
}

// runtimeMessage takes the error messages out of a runtime's output. With
// --log-format=json both crun and runc write one object a line; what is not
// such an object (a crash, another runtime) is kept as it is. Warnings are
// left out when there is an error.
func runtimeMessage(out string) string {
	var errs, rest []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		var l struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &l) != nil || l.Msg == "" {
			rest = append(rest, line)
			continue
		}
		switch l.Level {
		case "error", "fatal", "panic", "":
			// runc writes the same message to its log and to stderr.
			if len(errs) == 0 || errs[len(errs)-1] != l.Msg {
				errs = append(errs, l.Msg)
			}
		default:
			rest = append(rest, l.Msg)
		}
	}
	if len(errs) > 0 {
		return strings.Join(errs, "; ")
	}
	return strings.Join(rest, "; ")
}

// loggedErrors is runtimeMessage for a log file that is read although the call
// may have gone well: only errors count.
func loggedErrors(log string) string {
	var errs []string
	for line := range strings.Lines(log) {
		var l struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Level == "error" && l.Msg != "" {
			errs = append(errs, l.Msg)
		}
	}
	return strings.Join(errs, "; ")
}

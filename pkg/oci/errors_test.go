package oci

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestRuntimeErrorClasses: what a runtime says of a container's configuration or root file
// system has a class.
func TestRuntimeErrorClasses(t *testing.T) {
	for _, c := range []struct {
		message string
		is, not error
		word    string
	}{
		{"chdir `/wf`: Not a directory", ErrWorkingDirectory, ErrRootfsLost, "/wf"},
		{"chdir `/loop`: Too many levels of symbolic links", errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, "/loop"},
		{"chdir `/proc/x`: No such file or directory", errdefs.ErrInvalidArgument, ErrCommandNotFound, "/proc/x"},
		{"runc create failed: unable to start container process: error during container init: chdir to cwd (\"/wf\") set in config.json failed: not a directory", errdefs.ErrInvalidArgument, ErrCommandNotFound, "/wf"},
		{"open executable: Transport endpoint is not connected", ErrRootfsLost, ErrCommandNotExecutable, "start the container anew"},
		{"chdir `/x`: Transport endpoint is not connected", errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument, "start the container anew"},
		{"executable file `x` not found in $PATH: No such file or directory", ErrCommandNotFound, errdefs.ErrInvalidArgument, "$PATH"},
		{"mount `proc` to `proc`: Permission denied", nil, errdefs.ErrInvalidArgument, "proc"},
	} {
		err := error(&RuntimeError{Op: "create", Handler: "crun", Message: c.message})
		if c.is != nil && !errors.Is(err, c.is) || errors.Is(err, c.not) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%q: is %v: %v; is %v: %v; text %q", c.message, c.is, errors.Is(err, c.is), c.not, errors.Is(err, c.not), err)
		}
	}
}

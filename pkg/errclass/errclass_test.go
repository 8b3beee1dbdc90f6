package errclass_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/errclass"
)

func TestNew(t *testing.T) {
	a, b := errclass.New(errdefs.ErrNotFound, "no image"), errclass.New(errdefs.ErrNotFound, "no image")
	wrapped := fmt.Errorf("pull: %w", a)
	if wrapped.Error() != "pull: no image" {
		t.Errorf("the text is %q", wrapped)
	}
	if !errors.Is(wrapped, a) || !errors.Is(wrapped, errdefs.ErrNotFound) || !errdefs.IsNotFound(wrapped) {
		t.Error("it is not found by itself or by its class")
	}
	if errors.Is(wrapped, b) || errors.Is(wrapped, errdefs.ErrAlreadyExists) {
		t.Error("it is another sentinel or class")
	}
}

func TestTimeout(t *testing.T) {
	err := errclass.New(errclass.ErrTimeout, "killed")
	if !errors.Is(err, errclass.ErrTimeout) || !errdefs.IsDeadlineExceeded(err) {
		t.Error("it is not found by its class")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		t.Error("it is taken for the caller's deadline")
	}
}

package rpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/subpod/subpod/pkg/errclass"
)

// Typed is an error that clients recognize by the text that its message begins with. Its
// code is Unknown: only then does the kubelet's client (k8s.io/cri-client) take the bare
// message.
type Typed struct{ Err, Prefix error }

// Reason is what the trailer api.ReasonTrailer holds for an error.
type Reason struct {
	Err    error
	Reason string
}

// codeOf maps the classes of errors to gRPC codes; the first match counts. An error of
// no class is Unknown.
var codeOf = []struct {
	class error
	code  codes.Code
}{
	{errdefs.ErrAborted, codes.Aborted},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{errclass.ErrTimeout, codes.DeadlineExceeded},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{errdefs.ErrDataLoss, codes.DataLoss},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{unix.ENOSPC, codes.ResourceExhausted},
	{unix.EDQUOT, codes.ResourceExhausted},
	{unix.EMFILE, codes.ResourceExhausted},
	{unix.ENFILE, codes.ResourceExhausted},
	{unix.EAGAIN, codes.ResourceExhausted}, // fork(2)
	{unix.ENOMEM, codes.ResourceExhausted},
}

// hints lists what to do about limits whose errors do not name them.
var hints = []struct {
	err  error
	text string
}{
	{unix.EMFILE, "raise the daemon's limit of open files: LimitNOFILE= of its unit, ulimit -n"},
	{unix.EAGAIN, "raise the limit of processes: TasksMax= of the daemon's unit or the user's slice, ulimit -u"},
}

func (i *interceptor) reasonOf(err error) string {
	for _, r := range i.Reasons {
		if errors.Is(err, r.Err) {
			return r.Reason
		}
	}
	return ""
}

// withCode returns the error as a gRPC status. One that is a status already stays as it
// is.
func (i *interceptor) withCode(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, t := range i.Typed {
		if errors.Is(err, t.Err) {
			return status.Error(codes.Unknown, fmt.Sprintf("%s: %v", t.Prefix, err))
		}
	}
	text := err.Error()
	for _, h := range hints {
		if errors.Is(err, h.err) {
			text += "; " + h.text
		}
	}
	for _, m := range codeOf {
		if errors.Is(err, m.class) {
			return status.Error(m.code, text)
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
	{errBusy, codes.Unavailable},
	{unix.EAGAIN, codes.ResourceExhausted}, // fork(2)
	{unix.ENOMEM, codes.ResourceExhausted},
}

// hints lists what to do about limits whose errors do not name them.
var hints = []struct {
	err  error
	text string
}{
	{unix.EMFILE, "raise the daemon's limit of open files: LimitNOFILE= of its unit, ulimit -n"},
	{errBusy, "no limit of processes that can be seen from here is reached (pids.max, RLIMIT_NPROC, kernel.threads-max, kernel.pid_max): the machine was busy, try again"},
}

// errBusy is EAGAIN without a limit that explains it.
var errBusy = errors.New("the machine is busy")

// explainAgain says what EAGAIN means, by which fork(2) and its like fail: a limit of
// processes is named, unless the error does so already.
func (i *interceptor) explainAgain(err error) error {
	if !errors.Is(err, unix.EAGAIN) || errors.Is(err, errdefs.ErrResourceExhausted) {
		return err
	}
	if limit := i.ForkLimit(); limit != "" {
		return fmt.Errorf("%w; the limit of processes is reached: %s", err, limit)
	}
	return busy{err}
}

// busy is errBusy with the text of another error.
type busy struct{ error }

// Unwrap returns the error and errBusy.
func (b busy) Unwrap() []error { return []error{b.error, errBusy} }

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
	err = i.explainAgain(err)
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

// maxMessage bounds the message of an error, in bytes. Errors name what they are about, and
// a client chooses how long that is: it is in the answer, in the log and in the trace.
const maxMessage = 8 << 10

// bounded returns a status with the beginning and the end of a message that is too long: the
// cause and what to do come last.
func bounded(err error) error {
	s, ok := status.FromError(err)
	if !ok || len(s.Message()) <= maxMessage {
		return err
	}
	text := s.Message()
	head, tail := text[:maxMessage/2], text[len(text)-maxMessage/4:]
	short := fmt.Sprintf("%s… (%d bytes) …%s", head, len(text)-len(head)-len(tail), tail)
	p := s.Proto()
	p.Message = strings.ToValidUTF8(short, "")
	return status.FromProto(p).Err()
}

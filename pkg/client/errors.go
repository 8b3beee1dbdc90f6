package client

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/subpod/subpod/pkg/api"
)

// Error is an error that the daemon has returned, with its message.
type Error struct {
	Code    codes.Code
	Reason  string // one of control's reasons, or ""
	Message string
}

// Error implements error with the message of the server.
func (e *Error) Error() string { return e.Message }

// IsNotFound reports whether the error is that an object does not exist.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == codes.NotFound
}

// HasReason reports whether the error has this reason (api.Reason…).
func HasReason(err error, reason string) bool {
	var e *Error
	return errors.As(err, &e) && e.Reason == reason
}

// toError converts the error of a call to an *Error.
func toError(err error, trailer metadata.MD) error {
	if err == nil || err == io.EOF {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	e := &Error{Code: st.Code(), Message: st.Message()}
	if r := trailer.Get(api.ReasonTrailer); len(r) > 0 {
		e.Reason = r[0]
	}
	switch {
	case e.Message == "":
		e.Message = st.Code().String()
	// What gRPC itself says of a method or a service that is not served.
	case e.Code == codes.Unimplemented && strings.HasPrefix(e.Message, "unknown "):
		e.Message += ": the daemon is of another version than this command; after an update: subpod reload"
	}
	return e
}

func unaryErrors(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx = metadata.AppendToOutgoingContext(ctx, api.CommandHeader, "1")
	var trailer metadata.MD
	err := invoke(ctx, method, req, reply, conn, append(opts, grpc.Trailer(&trailer))...)
	return toError(err, trailer)
}

func streamErrors(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, toError(err, nil)
	}
	return errorStream{s}, nil
}

// errorStream is a stream whose errors are *Error.
type errorStream struct{ grpc.ClientStream }

// RecvMsg implements grpc.ClientStream.
func (s errorStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || err == io.EOF {
		return err
	}
	return toError(err, s.Trailer())
}

package api

import (
	"context"
	"encoding/json"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// Call makes a call that has one answer: Call[LoadResponse](ctx, conn, "Load", req).
func Call[Resp any](ctx context.Context, conn grpc.ClientConnInterface, method string, req any) (*Resp, error) {
	resp := new(Resp)
	if err := conn.Invoke(ctx, "/"+Service+"/"+method, req, resp, grpc.CallContentSubtype(codecName)); err != nil {
		return nil, err
	}
	return resp, nil
}

// Receive makes a call that has any number of answers, and hands each to got.
func Receive[Resp any](ctx context.Context, conn grpc.ClientConnInterface, method string, req any, got func(*Resp) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+Service+"/"+method, grpc.CallContentSubtype(codecName))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(req); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		resp := new(Resp)
		switch err := stream.RecvMsg(resp); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if err := got(resp); err != nil {
			return err
		}
	}
}

// Send makes a call of any number of requests, those that next returns until
// it returns io.EOF.
func Send[Resp any](ctx context.Context, conn grpc.ClientConnInterface, method string, next func() (any, error)) (*Resp, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/"+Service+"/"+method, grpc.CallContentSubtype(codecName))
	if err != nil {
		return nil, err
	}
	for {
		req, err := next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		// io.EOF says that the other end has an error for us: see RecvMsg.
		if err := stream.SendMsg(req); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	resp := new(Resp)
	return resp, stream.RecvMsg(resp)
}

func serverStream[Req, Resp any](call func(context.Context, *Req, func(*Resp) error) error) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		req := new(Req)
		if err := stream.RecvMsg(req); err != nil {
			return err
		}
		return call(stream.Context(), req, func(r *Resp) error { return stream.SendMsg(r) })
	}
}

func clientStream[Req, Resp any](call func(context.Context, func() (*Req, error)) (*Resp, error)) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		resp, err := call(stream.Context(), func() (*Req, error) {
			req := new(Req)
			return req, stream.RecvMsg(req)
		})
		if err != nil {
			return err
		}
		return stream.SendMsg(resp)
	}
}

func unary[Req, Resp any](method string, call func(context.Context, *Req) (*Resp, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		req := new(Req)
		if err := decode(req); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, req any) (any, error) { return call(ctx, req.(*Req)) }
		if interceptor == nil {
			return handle(ctx, req)
		}
		return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + Service + "/" + method}, handle)
	}
}

// codecName is the content subtype of the service's messages.
const codecName = "json"

func init() { encoding.RegisterCodec(codec{}) }

type codec struct{}

func (codec) Name() string                       { return codecName }
func (codec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (codec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// Package control is subpod's own gRPC service, beside the CRI on the same
// socket, for what the CRI has no call for. Messages are JSON, so that no
// generated code is needed.
package control

import (
	"context"
	"encoding/json"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// Service is the name of the service.
const Service = "subpod.v1.Control"

// LoadRequest asks for images to be loaded from a file or directory that the
// daemon's user can read.
type LoadRequest struct {
	// Source is "oci:DIR[:REF]", "oci-archive:FILE[:REF]",
	// "docker-archive:FILE[:REF]" or a path; paths are absolute.
	Source string `json:"source"`
}

// LoadResponse lists what was loaded.
type LoadResponse struct {
	Images []LoadedImage `json:"images"`
}

// LoadedImage is one image that was loaded.
type LoadedImage struct {
	ID   string   `json:"id"`
	Tags []string `json:"tags"`
}

// Server is what serves the calls.
type Server interface {
	// Load loads images from files.
	Load(context.Context, *LoadRequest) (*LoadResponse, error)
}

// Register adds the service to a gRPC server.
func Register(s grpc.ServiceRegistrar, impl Server) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: Service,
		HandlerType: (*Server)(nil),
		Methods: []grpc.MethodDesc{
			{MethodName: "Load", Handler: unary("Load", impl.Load)},
		},
	}, impl)
}

// Load calls Server.Load on the other end.
func Load(ctx context.Context, conn grpc.ClientConnInterface, req *LoadRequest) (*LoadResponse, error) {
	return invoke[LoadResponse](ctx, conn, "Load", req)
}

func invoke[Resp any](ctx context.Context, conn grpc.ClientConnInterface, method string, req any) (*Resp, error) {
	resp := new(Resp)
	if err := conn.Invoke(ctx, "/"+Service+"/"+method, req, resp, grpc.CallContentSubtype(codecName)); err != nil {
		return nil, err
	}
	return resp, nil
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

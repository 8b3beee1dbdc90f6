package rpc

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

// TestCheckHealth: SERVING is success, anything else and no answer is not.
func TestCheckHealth(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, checks := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, checks)
	checks.SetServingStatus("well", grpc_health_v1.HealthCheckResponse_SERVING)
	checks.SetServingStatus("ill", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	go func() { _ = server.Serve(l) }()
	check := func(service string) error {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		return CheckHealth(t.Context(), conn, service)
	}
	for service, ok := range map[string]bool{"": true, "well": true, "ill": false, "unknown": false} {
		if err := check(service); (err == nil) != ok {
			t.Errorf("%q: %v", service, err)
		}
	}
	server.Stop()
	if err := check(""); err == nil {
		t.Error("nothing listens, and that is well")
	}
}

// endless is a container's health service whose answers have no end.
type endless struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (endless) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	resp := &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}
	if r.Service == "message" {
		resp.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 15, protowire.BytesType), make([]byte, 1<<20)))
		return resp, nil
	}
	return resp, grpc.SetHeader(ctx, metadata.Pairs("a", strings.Repeat("x", 1<<20)))
}

// TestCheckHealthBounds: of an answer that does not end, a part is read: it is none.
func TestCheckHealthBounds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	defer server.Stop()
	grpc_health_v1.RegisterHealthServer(server, endless{})
	go func() { _ = server.Serve(l) }()
	for _, service := range []string{"message", "header"} {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := CheckHealth(ctx, conn, service); err == nil || ctx.Err() != nil {
			t.Errorf("%s: %v", service, err)
		}
		cancel()
	}
}

package rpc

import (
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
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

package rpc

import (
	"context"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// maxHealthAnswer bounds what is read of an answer, its header and its message each, in
// bytes: it is a container's.
const maxHealthAnswer = 64 << 10

// CheckHealth asks grpc.health.v1 for a service on a connection, which it closes: what a
// gRPC probe does. Nil is SERVING.
func CheckHealth(ctx context.Context, conn net.Conn, service string) error {
	defer conn.Close()
	var once sync.Once
	c, err := grpc.NewClient("passthrough:///probe",
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			var first net.Conn
			once.Do(func() { first = conn })
			if first == nil {
				return nil, net.ErrClosed
			}
			return first, nil
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithMaxHeaderListSize(maxHealthAnswer), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxHealthAnswer)),
		grpc.WithStaticStreamWindowSize(maxHealthAnswer), grpc.WithStaticConnWindowSize(maxHealthAnswer),
		grpc.WithDisableServiceConfig(), grpc.WithUserAgent("subpod-probe"))
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		return err
	}
	if resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("the service is %s", resp.Status)
	}
	return nil
}

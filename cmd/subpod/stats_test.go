package main

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// churn is a server whose containers come and go: those of list, and of stats later.
type churn struct {
	runtimeapi.RuntimeServiceClient
	list, stats []string
}

// ListContainers implements runtimeapi.RuntimeServiceClient.
func (c *churn) ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	resp := &runtimeapi.ListContainersResponse{}
	for _, id := range c.list {
		resp.Containers = append(resp.Containers, &runtimeapi.Container{Id: id, PodSandboxId: "p", Metadata: &runtimeapi.ContainerMetadata{Name: id}})
	}
	return resp, nil
}

// ListPodSandbox implements runtimeapi.RuntimeServiceClient.
func (c *churn) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: "p", Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "default"}}}}, nil
}

// ListContainerStats implements runtimeapi.RuntimeServiceClient.
func (c *churn) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest, ...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error) {
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, id := range c.stats {
		resp.Stats = append(resp.Stats, &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: id}})
	}
	return resp, nil
}

// TestStatsChurn: a container that has come after the list has no row yet, since it has no
// name; and of those that have gone nothing is kept.
func TestStatsChurn(t *testing.T) {
	server := &churn{}
	s := &sampler{client: &client.Client{RuntimeServiceClient: server}, last: map[string]sample{}}
	for i := range 100 {
		server.list, server.stats = []string{fmt.Sprint("a", i)}, []string{fmt.Sprint("a", i), fmt.Sprint("new", i)}
		rows, err := s.rows(t.Context(), nil)
		if err != nil || len(rows) != 1 || rows[0].ID != server.list[0] || rows[0].Name == "" {
			t.Fatalf("%+v, %v", rows, err)
		}
	}
	if len(s.last) > 2 {
		t.Errorf("samples of %d containers are kept", len(s.last))
	}
}

// kept is a server that measures a container, which keeps one processor busy, once a second,
// and uses that again until then.
type kept struct{ churn }

// ListContainerStats implements runtimeapi.RuntimeServiceClient.
func (k *kept) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest, ...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error) {
	at := time.Now().Truncate(time.Second).UnixNano()
	return &runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{{
		Attributes: &runtimeapi.ContainerAttributes{Id: "busy"},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: uint64(at)}},
	}, {
		Attributes: &runtimeapi.ContainerAttributes{Id: "ended"},
	}}}, nil
}

// TestStatsOfKept: what the server has measured once for several requests is no standstill.
func TestStatsOfKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &kept{churn{list: []string{"busy", "ended"}}}
		s := &sampler{client: &client.Client{RuntimeServiceClient: server}, last: map[string]sample{}}
		begin := time.Now()
		rows, err := s.first(t.Context(), nil, 100*time.Millisecond)
		for range 30 {
			if err != nil || len(rows) != 2 || rows[0].CPU != 100 || rows[1].CPU != 0 {
				t.Fatalf("after %v: %+v, %v", time.Since(begin), rows, err)
			}
			rows, err = s.after(t.Context(), 100*time.Millisecond, nil)
		}
	})
}

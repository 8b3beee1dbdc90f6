package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// oneImage is a server with one image, whose configuration exposes ports.
type oneImage struct {
	runtimeapi.UnimplementedImageServiceServer
	exposed string // JSON
}

// ImageStatus implements runtimeapi.ImageServiceServer.
func (i *oneImage) ImageStatus(context.Context, *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: "image"}, Info: map[string]string{
		"info": `{"imageSpec": {"config": {"ExposedPorts": ` + i.exposed + `}}}`,
	}}, nil
}

func clientOf(t *testing.T, image *oneImage) *client.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterImageServiceServer(server, image)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	c, err := client.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestPublishAll: an image says which ports of its own are published, never which ports of
// the host those are, nor takes it any number of them.
func TestPublishAll(t *testing.T) {
	image := &oneImage{}
	c := clientOf(t, image)
	image.exposed = `{"80/tcp": {}, "53/udp": {}, "90": {}, "8000-8299/tcp": {}}`
	pod := &runtimeapi.PodSandboxConfig{PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 90, HostPort: 9}}}
	if err := (&moreOptions{expose: []string{"80", "81-82/udp"}}).publishExposed(t.Context(), c, "image", pod); err != nil {
		t.Fatal(err)
	}
	got, host := map[string]bool{}, map[string]bool{}
	for _, m := range pod.PortMappings {
		got[fmt.Sprintf("%d/%v", m.ContainerPort, m.Protocol)] = true
		if at := fmt.Sprintf("%d/%v", m.HostPort, m.Protocol); m.HostPort == 0 || host[at] {
			t.Errorf("the port %s of the host is chosen twice, or none is", at)
		} else {
			host[at] = true
		}
	}
	if len(got) != 305 || len(pod.PortMappings) != 305 || !got["80/TCP"] || !got["53/UDP"] || !got["81/UDP"] || !got["8299/TCP"] {
		t.Errorf("%d ports: %v", len(pod.PortMappings), got)
	}
	for _, exposed := range []string{`{"8080:80/tcp": {}}`, `{"0.0.0.0:8080:80": {}}`, `{"1-65535/tcp": {}}`, `{"1-1000/tcp": {}, "1-1000/udp": {}}`, `{"80/icmp": {}}`} {
		image.exposed = exposed
		pod := &runtimeapi.PodSandboxConfig{}
		if err := (&moreOptions{}).publishExposed(t.Context(), c, "image", pod); err == nil || errors.Is(err, errUsage) {
			t.Errorf("%s: %d ports, %v", exposed, len(pod.PortMappings), err)
		}
	}
	if err := (&moreOptions{expose: []string{"8080:80"}}).publishExposed(t.Context(), c, "image", &runtimeapi.PodSandboxConfig{}); !errors.Is(err, errUsage) {
		t.Errorf("--expose with a port of the host: %v; want errUsage", err)
	}
}

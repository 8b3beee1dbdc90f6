package audit

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// records returns what the requests write.
func records(requests ...any) string {
	var out bytes.Buffer
	l := &Log{
		Log:    slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: withoutTime})),
		Client: func(context.Context) Client { return Client{UID: 0, PID: 42, Program: "kubelet"} },
		Name:   func(string) string { return "ns/web/c" },
	}
	for _, r := range requests {
		l.Request(context.Background(), r)
	}
	return out.String()
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

const secret = "hunter2"

func TestRecords(t *testing.T) {
	const who = "level=INFO msg=audit action="
	const client = " client.uid=0 client.pid=42 client.program=kubelet "
	host := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE}
	for _, c := range []struct {
		request any
		want    string
	}{
		{&runtimeapi.ExecRequest{ContainerId: "c1", Cmd: []string{"mysql", "-p" + secret}, Tty: true}, who + "exec" + client + "id=c1 name=ns/web/c command=mysql words=2 tty=true stdin=false\n"},
		{&runtimeapi.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"PW=" + secret + " run"}}, who + "exec" + client + "id=c1 name=ns/web/c command=PW… words=1\n"},
		{&runtimeapi.AttachRequest{ContainerId: "c1", Stdin: true}, who + "attach" + client + "id=c1 name=ns/web/c tty=false stdin=true\n"},
		{&runtimeapi.PortForwardRequest{PodSandboxId: "p1", Port: []int32{80, 443}}, who + "port-forward" + client + "id=p1 name=ns/web/c ports=80,443\n"},
		{&api.SessionRequest{Kind: api.SessionExec, ContainerID: "c1", Command: []string{"sh"}, TTY: true}, who + "exec" + client + "id=c1 name=ns/web/c command=sh words=1 tty=true stdin=false\n"},
		{&api.SessionRequest{Kind: api.SessionAttach, ContainerID: "c1"}, who + "attach" + client + "id=c1 name=ns/web/c tty=false stdin=false\n"},
		{&api.SessionRequest{Kind: api.SessionPortForward, PodID: "p1", Port: 80}, who + "port-forward" + client + "id=p1 name=ns/web/c ports=80\n"},
		{&runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "ns"},
			Annotations: map[string]string{"a": secret}, Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: host}}}},
			who + "run-pod" + client + "name=ns/web privileged=false node_namespaces=network,pid\n"},
		{&runtimeapi.CreateContainerRequest{SandboxConfig: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "ns"}},
			Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Envs: []*runtimeapi.KeyValue{{Key: "k", Value: []byte(secret)}},
				Mounts:  []*runtimeapi.Mount{{HostPath: "/home/ann", ContainerPath: "/h"}, {HostPath: "/etc", Readonly: true}, {Image: &runtimeapi.ImageSpec{Image: "i"}}},
				Devices: []*runtimeapi.Device{{HostPath: "/dev/kvm"}},
				Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Privileged: true,
					Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}}}}},
			who + "create-container" + client + "name=ns/web/c privileged=true host_paths=/home/ann:rw,/etc:ro devices=/dev/kvm added_capabilities=SYS_ADMIN\n"},
		// What reaches nowhere is not recorded.
		{&runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{}}, ""},
		{&runtimeapi.RunPodSandboxRequest{}, ""},
		{&runtimeapi.CreateContainerRequest{}, ""},
		{&runtimeapi.ListContainersRequest{}, ""},
		{&api.SessionRequest{Kind: api.SessionRun}, ""},
	} {
		got := records(c.request)
		if got != c.want {
			t.Errorf("%T:\n got %q\nwant %q", c.request, got, c.want)
		}
		if strings.Contains(got, secret) {
			t.Errorf("a secret in %q", got)
		}
	}
}

// TestBounded: a record has one line and a bounded length, whatever the client sends.
func TestBounded(t *testing.T) {
	long := strings.Repeat("é\n\x1b[31m\xff", 1<<16)
	var mounts []*runtimeapi.Mount
	for range 10000 {
		mounts = append(mounts, &runtimeapi.Mount{HostPath: long})
	}
	for _, r := range []any{
		&runtimeapi.ExecRequest{ContainerId: long, Cmd: []string{long}},
		&runtimeapi.PortForwardRequest{PodSandboxId: long, Port: make([]int32, 1<<16)},
		&runtimeapi.CreateContainerRequest{SandboxConfig: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: long, Namespace: long}}, Config: &runtimeapi.ContainerConfig{Mounts: mounts}},
	} {
		got := records(r)
		if strings.Count(got, "\n") != 1 || strings.ContainsRune(got, 0x1b) || len(got) > 32<<10 || got == "" {
			t.Errorf("%T: %d lines, %d bytes", r, strings.Count(got, "\n"), len(got))
		}
	}
	var none *Log
	none.Request(context.Background(), &runtimeapi.ExecRequest{})
	none.Copy(context.Background(), "into", "", "")
}

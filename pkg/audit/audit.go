// Package audit writes a record into the server's log of each request that reaches into
// a container or beyond one: exec, attach, port-forward, copying; pod sandboxes and
// containers that are privileged or on the node's namespaces; host paths and devices.
//
// A record is one line of level INFO with the message "audit": who asked, for what, of
// which container. It is written when the request comes, whatever becomes of it. It has
// no content: of a command its first word and the number of words, since arguments hold
// passwords; no environment, no annotations. Its length is bounded.
package audit

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

const (
	maxText  = 256 // bytes of a value
	maxItems = 16  // of a list
)

// Client is who has sent a request, as the kernel told the server.
type Client struct {
	UID int // in the node: 0 is the user whose daemon it is
	PID int // in the node; 0 for a program outside of it
	// Program is the name of that process, which it may have chosen itself.
	Program string
}

// Log writes the records; nil writes none.
type Log struct {
	Log *slog.Logger
	// Client returns who has sent the request.
	Client func(context.Context) Client
	// Name returns the Kubernetes namespace and the names that a reference to a
	// container or pod sandbox stands for; "" when there is none.
	Name func(ref string) string
}

// Request records a request of the CRI, or of subpod's own service. Most are none of the
// recorded ones.
func (l *Log) Request(ctx context.Context, request any) {
	if l == nil {
		return
	}
	switch r := request.(type) {
	case *runtimeapi.ExecRequest:
		l.record(ctx, "exec", l.on(r.ContainerId), command(r.Cmd), slog.Bool("tty", r.Tty), slog.Bool("stdin", r.Stdin))
	case *runtimeapi.ExecSyncRequest:
		l.record(ctx, "exec", l.on(r.ContainerId), command(r.Cmd))
	case *runtimeapi.AttachRequest:
		l.record(ctx, "attach", l.on(r.ContainerId), slog.Bool("tty", r.Tty), slog.Bool("stdin", r.Stdin))
	case *runtimeapi.PortForwardRequest:
		l.record(ctx, "port-forward", l.on(r.PodSandboxId), slog.String("ports", items(r.Port)))
	case *runtimeapi.RunPodSandboxRequest:
		l.pod(ctx, r.Config)
	case *runtimeapi.CreateContainerRequest:
		l.container(ctx, r)
	case *api.SessionRequest:
		l.session(ctx, r)
	}
}

func (l *Log) session(ctx context.Context, r *api.SessionRequest) {
	switch r.Kind {
	case api.SessionExec:
		l.record(ctx, "exec", l.on(r.ContainerID), command(r.Command), slog.Bool("tty", r.TTY), slog.Bool("stdin", r.Stdin))
	case api.SessionAttach:
		l.record(ctx, "attach", l.on(r.ContainerID), slog.Bool("tty", r.TTY), slog.Bool("stdin", r.Stdin))
	case api.SessionPortForward:
		l.record(ctx, "port-forward", l.on(r.PodID), slog.String("ports", items([]int32{r.Port})))
	}
}

// Copy records a copy "into" or "out" of a container.
func (l *Log) Copy(ctx context.Context, direction, ref, path string) {
	if l != nil {
		l.record(ctx, "copy-"+direction, l.on(ref), text("path", path))
	}
}

func (l *Log) pod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig) {
	sec := cfg.GetLinux().GetSecurityContext()
	shared := namespaces(sec.GetNamespaceOptions())
	if !sec.GetPrivileged() && len(shared) == 0 {
		return
	}
	m := cfg.GetMetadata()
	l.record(ctx, "run-pod", text("name", m.GetNamespace()+"/"+m.GetName()),
		slog.Bool("privileged", sec.GetPrivileged()), slog.String("node_namespaces", items(shared)))
}

func (l *Log) container(ctx context.Context, r *runtimeapi.CreateContainerRequest) {
	sec := r.GetConfig().GetLinux().GetSecurityContext()
	var paths, devices []string
	for _, m := range r.GetConfig().GetMounts() {
		if m.GetHostPath() != "" {
			mode := "rw"
			if m.GetReadonly() {
				mode = "ro"
			}
			paths = append(paths, cut(m.GetHostPath())+":"+mode)
		}
	}
	for _, d := range r.GetConfig().GetDevices() {
		devices = append(devices, d.GetHostPath())
	}
	added := sec.GetCapabilities().GetAddCapabilities()
	if !sec.GetPrivileged() && len(paths)+len(devices)+len(added) == 0 {
		return
	}
	pod := r.GetSandboxConfig().GetMetadata()
	name := pod.GetNamespace() + "/" + pod.GetName() + "/" + r.GetConfig().GetMetadata().GetName()
	l.record(ctx, "create-container", text("name", name), slog.Bool("privileged", sec.GetPrivileged()),
		slog.String("host_paths", items(paths)), slog.String("devices", items(devices)), slog.String("added_capabilities", items(added)))
}

// namespaces returns which of the node's namespaces a pod has.
func namespaces(o *runtimeapi.NamespaceOption) (shared []string) {
	for _, n := range []struct {
		name string
		mode runtimeapi.NamespaceMode
	}{{"network", o.GetNetwork()}, {"pid", o.GetPid()}, {"ipc", o.GetIpc()}} {
		if o != nil && n.mode == runtimeapi.NamespaceMode_NODE {
			shared = append(shared, n.name)
		}
	}
	return shared
}

func (l *Log) record(ctx context.Context, action string, attrs ...slog.Attr) {
	c := l.Client(ctx)
	who := slog.Group("client", slog.Int("uid", c.UID), slog.Int("pid", c.PID), text("program", c.Program))
	l.Log.LogAttrs(ctx, slog.LevelInfo, "audit", append([]slog.Attr{slog.String("action", action), who}, attrs...)...)
}

// on names a container or pod sandbox.
func (l *Log) on(ref string) slog.Attr {
	return slog.Group("", text("id", ref), text("name", l.Name(ref)))
}

// command is what is known of a command without its arguments.
func command(argv []string) slog.Attr {
	first := ""
	if len(argv) > 0 {
		first = argv[0]
	}
	// A shell line in one word is an argument.
	if i := strings.IndexAny(first, " \t\r\n;="); i >= 0 {
		first = first[:i] + "…"
	}
	return slog.Group("", text("command", first), slog.Int("words", len(argv)))
}

func text(key, value string) slog.Attr { return slog.String(key, cut(value)) }

// cut bounds a value, and makes it text.
func cut(value string) string {
	if len(value) > maxText {
		value = strings.ToValidUTF8(value[:maxText], "\uFFFD") + "…"
	}
	return strings.ToValidUTF8(value, "\uFFFD")
}

// items joins a list, bounded.
func items[T any](list []T) string {
	var out []string
	for i, v := range list {
		if i == maxItems {
			out = append(out, fmt.Sprintf("and %d more", len(list)-maxItems))
			break
		}
		s, ok := any(v).(string)
		if !ok {
			s = fmt.Sprint(v)
		}
		out = append(out, cut(s))
	}
	return strings.Join(out, ",")
}

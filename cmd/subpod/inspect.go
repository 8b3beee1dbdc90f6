package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// inspected is the output for one object: its status and an explanation of what is
// particular to a rootless runtime.
type inspected struct {
	Kind    string          `json:"kind"` // container, pod, image
	Name    string          `json:"name"`
	Explain []string        `json:"explain,omitempty"`
	Status  json.RawMessage `json:"status"`
	Info    json.RawMessage `json:"info,omitempty"`

	fields any // what --format sees, with the names of Podman and Docker
}

// MarshalJSON puts the fields that Podman and Docker have in front of subpod's own.
func (i inspected) MarshalJSON() ([]byte, error) {
	type own inspected
	theirs, err := json.Marshal(i.fields)
	if err != nil {
		return nil, err
	}
	var ours bytes.Buffer
	e := json.NewEncoder(&ours)
	e.SetEscapeHTML(false)
	if err := e.Encode(own(i)); err != nil {
		return nil, err
	}
	return append(append(theirs[:len(theirs)-1:len(theirs)-1], ','), ours.Bytes()[1:]...), nil
}

func newInspect(a *app) *cobra.Command { return newInspectOf(a, "") }

// newInspectOf returns the command for objects of a kind; "" is any.
func newInspectOf(a *app, kind string) *cobra.Command {
	var out *format
	cmd := &cobra.Command{
		Use:   "inspect [flags] NAME|ID...",
		Short: "Show details of a container, pod or image",
		Long: `Shows all details of an object, and explains which host IDs the IDs in the container
are mapped to, how its root file system is mounted and how it is connected to the
network. Fields that Podman and Docker have are there by their names, for --format, too.`,
		Example: "  subpod inspect web\n  subpod inspect -f '{{.State.Status}} {{.NetworkSettings.IPAddress}}' web\n  subpod inspect --type image busybox\n  subpod inspect -o 'go-template={{index .explain 0}}' web",
		Args:    atLeast(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			switch kind {
			case "", "container", "pod", "image":
			default:
				return usagef("invalid --type %q: expected container, pod or image", kind)
			}
			var list []inspected
			for _, ref := range args {
				item, err := inspect(cmd.Context(), conn.Client, ref, kind)
				if err != nil {
					return err
				}
				if f, ok := item.fields.(*inspectedContainer); ok && f.State.Pid != 0 {
					// 0 where it has ended by now, or the node is not ours.
					f.State.Pid, _ = conn.hostPID(f.State.Pid)
				}
				list = append(list, item)
			}
			if out.goFormat != "" && out.goFormat != "json" {
				return printInspected(cmd.OutOrStdout(), out.goFormat, list)
			}
			if out.value == "table" {
				for _, item := range list {
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", item.Kind, plain(item.Name))
					for _, line := range item.Explain {
						fmt.Fprintf(cmd.OutOrStdout(), "  %s\n", plain(line))
					}
				}
				return nil
			}
			return printList(cmd.OutOrStdout(), out, list, nil)
		}),
		ValidArgsFunction: a.completeBoth,
	}
	out = addFormat(cmd)
	out.addGoFormat(cmd, "f")
	must(cmd.Flags().Set("output", "json"))
	cmd.Flags().Lookup("output").DefValue = "json"
	cmd.Flags().Lookup("output").Usage = "output format: json, yaml, table (only the explanation), or go-template=TEMPLATE"
	cmd.Flags().StringVarP(&kind, "type", "t", kind, "container, pod or image (default: the first of these that has the name)")
	return a.withLatest(cmd, false)
}

// printInspected prints objects by a template, a line each.
func printInspected(w io.Writer, text string, list []inspected) error {
	tmpl, err := parseTemplate(goTemplate(text))
	if err != nil {
		return err
	}
	for _, item := range list {
		var line strings.Builder
		if err := tmpl.Execute(&line, item.fields); err != nil {
			return usagef("--format: %v; \"subpod inspect %s\" shows the fields", err, item.Name)
		}
		if _, err := fmt.Fprintln(w, line.String()); err != nil {
			return err
		}
	}
	return nil
}

func inspect(ctx context.Context, c *client.Client, ref, kind string) (inspected, error) {
	for _, k := range []struct {
		kind string
		look func(context.Context, *client.Client, string) (inspected, error)
	}{{"container", inspectContainer}, {"pod", inspectPod}, {"image", inspectImage}} {
		if kind != "" && kind != k.kind {
			continue
		}
		item, err := k.look(ctx, c, ref)
		if kind != "" || !errors.Is(err, client.ErrNotFound) && !client.IsNotFound(err) {
			return item, err
		}
	}
	return inspected{}, fmt.Errorf("container, pod or image %q: %w", ref, client.ErrNotFound)
}

func protoJSON(m proto.Message) json.RawMessage {
	text, err := protojson.MarshalOptions{EmitUnpopulated: false}.Marshal(m)
	if err != nil {
		return nil
	}
	return text
}

// containerFacts is the part of a container's verbose status that inspect reads.
type containerFacts struct {
	PID    int  `json:"pid"`
	Paused bool `json:"paused"`
	Facts  struct {
		Rootfs string `json:"rootfs"`
		Cgroup string `json:"cgroup"`
		User   struct {
			UID, GID uint32
			Groups   []uint32
		} `json:"user"`
	} `json:"facts"`
	Config struct {
		Linux struct {
			SecurityContext struct {
				Privileged bool `json:"privileged"`
				Seccomp    struct {
					ProfileType  int    `json:"profile_type"`
					LocalhostRef string `json:"localhost_ref"`
				} `json:"seccomp"`
			} `json:"security_context"`
		} `json:"linux"`
	} `json:"config"`
}

func inspectContainer(ctx context.Context, c *client.Client, ref string) (inspected, error) {
	x, err := c.Container(ctx, ref)
	if err != nil {
		return inspected{}, err
	}
	st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: x.Id, Verbose: true})
	if err != nil {
		return inspected{}, err
	}
	out := inspected{Kind: "container", Name: x.Name(), Status: protoJSON(st.Status), Info: json.RawMessage(st.Info["info"])}
	var facts containerFacts
	if err := json.Unmarshal(out.Info, &facts); err != nil {
		return out, fmt.Errorf("decode the status of container %s: %w", x.Id, err)
	}
	if out.fields, err = containerFields(ctx, c, x, st.Status, out.Info); err != nil {
		return out, err
	}
	node, err := readNode(ctx, c)
	if err != nil {
		return out, err
	}
	user := facts.Facts.User
	explain := func(format string, args ...any) { out.Explain = append(out.Explain, fmt.Sprintf(format, args...)) }
	if facts.Paused {
		explain("state: paused; \"subpod unpause\" lets it go on")
	} else {
		explain("state: %s", stateWord(st.Status))
	}
	explain("user: its first process is uid %d, gid %d in the container, which is uid %s, gid %s on the host",
		user.UID, user.GID, hostID(node.Node.UIDMap, user.UID), hostID(node.Node.GIDMap, user.GID))
	explain("IDs: %s", explainMap(node.Node.UIDMap))
	explain("root file system: %s, because %s; writable layer on %s", node.Storage.Driver, node.Storage.Reason, node.Storage.BackingFS)
	if facts.Facts.Cgroup != "" {
		explain("cgroup: %s", facts.Facts.Cgroup)
	} else {
		explain("cgroup: none, resource limits are not applied: %s", node.Cgroup.Reason)
	}
	explain("security: %s", explainSecurity(facts))
	lines, err := explainNetwork(ctx, c, x.PodSandboxId, node)
	out.Explain = append(out.Explain, lines...)
	return out, err
}

func stateWord(st *runtimeapi.ContainerStatus) string {
	word := stateName(st.State)
	if st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		word = fmt.Sprintf("exited with code %d (%s)", st.ExitCode, st.Reason)
		if st.Message != "" {
			word += ": " + st.Message
		}
	}
	return word
}

func explainSecurity(f containerFacts) string {
	sec := f.Config.Linux.SecurityContext
	if sec.Privileged {
		return "privileged: all capabilities of root in the node, which is an unprivileged user on the host"
	}
	switch runtimeapi.SecurityProfile_ProfileType(sec.Seccomp.ProfileType) {
	case runtimeapi.SecurityProfile_Unconfined:
		return "no seccomp profile"
	case runtimeapi.SecurityProfile_Localhost:
		return "seccomp profile " + sec.Seccomp.LocalhostRef
	}
	return "the default seccomp profile"
}

// explainNetwork describes how a pod is connected to the network.
func explainNetwork(ctx context.Context, c *client.Client, podID string, node nodeInfo) ([]string, error) {
	st, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil {
		return nil, err
	}
	var lines []string
	options := st.Status.GetLinux().GetNamespaces().GetOptions()
	var ips []string
	if ip := st.Status.GetNetwork().GetIp(); ip != "" {
		ips = append(ips, ip)
	}
	for _, ip := range st.Status.GetNetwork().GetAdditionalIps() {
		ips = append(ips, ip.Ip)
	}
	switch {
	case options.GetNetwork() == runtimeapi.NamespaceMode_NODE:
		lines = append(lines, "network: that of the node, behind "+uplinkName(node))
	case len(ips) == 0:
		lines = append(lines, "network: loopback only")
	default:
		lines = append(lines, fmt.Sprintf("network: %s on the node's bridge; other hosts are reached through %s", strings.Join(ips, ", "), uplinkName(node)))
	}
	ports, err := podPorts(ctx, c, podID)
	for _, p := range ports {
		lines = append(lines, "port: "+p+", forwarded from the host")
	}
	return lines, err
}

func uplinkName(n nodeInfo) string {
	if n.Node.Uplink == "" {
		return "the network that the node was started in"
	}
	return n.Node.Uplink
}

func inspectPod(ctx context.Context, c *client.Client, ref string) (inspected, error) {
	p, err := c.Pod(ctx, ref)
	if err != nil {
		return inspected{}, err
	}
	st, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id, Verbose: true})
	if err != nil {
		return inspected{}, err
	}
	node, err := readNode(ctx, c)
	if err != nil {
		return inspected{}, err
	}
	out := inspected{Kind: "pod", Name: client.PodName(p), Status: protoJSON(st.Status), Info: json.RawMessage(st.Info["info"])}
	if out.fields, err = podFields(ctx, c, st.Status, out.Info); err != nil {
		return out, err
	}
	state := "ready"
	if p.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		state = "not ready: it is stopped"
	}
	out.Explain = append(out.Explain, "state: "+state, "IDs: "+explainMap(node.Node.UIDMap))
	lines, err := explainNetwork(ctx, c, p.Id, node)
	out.Explain = append(out.Explain, lines...)
	return out, err
}

func inspectImage(ctx context.Context, c *client.Client, ref string) (inspected, error) {
	st, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})
	if err != nil {
		return inspected{}, err
	}
	if st.Image == nil {
		return inspected{}, fmt.Errorf("image %q: %w", ref, client.ErrNotFound)
	}
	out := inspected{Kind: "image", Name: ref, Status: protoJSON(st.Image), Info: json.RawMessage(st.Info["info"])}
	out.Explain = append(out.Explain, "size: "+bytesText(st.Image.Size)+" unpacked", "names: "+strings.Join(st.Image.RepoTags, ", "))
	out.fields, err = imageFields(st.Image, out.Info)
	return out, err
}

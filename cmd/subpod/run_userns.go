package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// fillUserNamespace gives the pod a user namespace of its own, as --userns asks for. The
// IDs of its mappings are those of the node, in which this user is 0.
func (o *runOptions) fillUserNamespace(ctx context.Context, c *client.Client, pod *runtimeapi.PodSandboxConfig, ctr *runtimeapi.ContainerConfig) error {
	mode, text, _ := strings.Cut(o.userns, ":")
	if mode == "" || mode == "host" {
		return nil
	}
	values := map[string]uint32{}
	if text != "" {
		for part := range strings.SplitSeq(text, ",") {
			name, value, _ := strings.Cut(part, "=")
			n, err := strconv.ParseUint(value, 10, 31)
			if err != nil {
				return usagef("invalid --userns %q: %q is not a number", o.userns, part)
			}
			values[name] = uint32(n)
		}
	}
	node, err := readNode(ctx, c)
	if err != nil {
		return err
	}
	ns := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}
	switch mode {
	case "keep-id":
		uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
		if n, ok := values["uid"]; ok {
			uid = n
		}
		if n, ok := values["gid"]; ok {
			gid = n
		}
		ns.Uids, ns.Gids = keepID(uid, idCount(node.Node.UIDMap)), keepID(gid, idCount(node.Node.GIDMap))
		if o.user == "" {
			sec := ctr.Linux.SecurityContext
			sec.RunAsUser, sec.RunAsGroup = &runtimeapi.Int64Value{Value: int64(uid)}, &runtimeapi.Int64Value{Value: int64(gid)}
		}
	case "nomap":
		if count := min(idCount(node.Node.UIDMap), idCount(node.Node.GIDMap)); count > 1 {
			ns.Uids = []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 1, Length: count - 1}}
			ns.Gids = ns.Uids
		}
	case "auto":
		pod.Annotations[api.AnnotationOwnIDs] = strconv.FormatUint(uint64(cmp.Or(values["size"], autoSize)), 10)
	default:
		return usagef("invalid --userns %q: expected host, keep-id, nomap or auto; a container of another pod shares no user namespace", o.userns)
	}
	if mode != "auto" && (len(ns.Uids) == 0 || len(ns.Gids) == 0) {
		return fmt.Errorf("--userns %s: the node has too few IDs; give the user subordinate IDs (see \"subpod doctor\")", o.userns)
	}
	pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ns
	return nil
}

// idCount returns how many IDs the node has, from 0 on.
func idCount(ranges []idRange) uint32 {
	var n uint32
	for _, r := range ranges {
		if r.Container == n {
			n += r.Size
		}
	}
	return n
}

// keepID maps an ID to the node's 0, which is this user, and all others to the rest.
func keepID(id, count uint32) []*runtimeapi.IDMapping {
	var out []*runtimeapi.IDMapping
	below := min(id, count-1)
	if below > 0 {
		out = append(out, &runtimeapi.IDMapping{ContainerId: 0, HostId: 1, Length: below})
	}
	out = append(out, &runtimeapi.IDMapping{ContainerId: id, HostId: 0, Length: 1})
	if rest := count - 1 - below; rest > 0 {
		out = append(out, &runtimeapi.IDMapping{ContainerId: id + 1, HostId: 1 + below, Length: rest})
	}
	return out
}

// autoSize is how many IDs --userns auto takes unless it says so: more than the users of
// nearly all images, so that several pods can have their own.
const autoSize = 4096

package play

import (
	"context"
	"encoding/json"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/client"
)

// freeUsers returns the first ID of a range of the node's IDs for the user namespace
// of a pod, one that no other pod sandbox has.
func freeUsers(ctx context.Context, c *client.Client) (first uint32, err error) {
	count, err := nodeIDs(ctx, c)
	if err != nil {
		return 0, err
	}
	pods, err := c.Pods(ctx)
	if err != nil {
		return 0, err
	}
	taken := map[uint32]bool{}
	for _, p := range pods {
		st, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if client.IsNotFound(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		ns := st.GetStatus().GetLinux().GetNamespaces().GetOptions().GetUsernsOptions()
		for _, m := range append(ns.GetUids(), ns.GetGids()...) {
			for id := m.HostId / kube.UserCount; uint64(id)*kube.UserCount < uint64(m.HostId)+uint64(m.Length); id++ {
				taken[id] = true
			}
		}
	}
	// The first range is that of the node itself.
	for id := uint32(1); uint64(id+1)*kube.UserCount <= count; id++ {
		if !taken[id] {
			return id * kube.UserCount, nil
		}
	}
	return 0, fmt.Errorf("hostUsers: false needs %d IDs of the node that no other pod has, and the node has %d in total: add subordinate IDs (usermod --add-subuids, --add-subgids) and restart the daemon",
		kube.UserCount, count)
}

// nodeIDs returns the number of user and group IDs of the node, starting at 0.
func nodeIDs(ctx context.Context, c *client.Client) (uint64, error) {
	st, err := c.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return 0, err
	}
	var node struct {
		UIDMap, GIDMap []struct{ Container, Size uint32 }
	}
	if err := json.Unmarshal([]byte(st.Info["node"]), &node); err != nil {
		return 0, fmt.Errorf("decode the status of the daemon: %w", err)
	}
	var uids, gids uint64
	for _, m := range node.UIDMap {
		uids = max(uids, uint64(m.Container)+uint64(m.Size))
	}
	for _, m := range node.GIDMap {
		gids = max(gids, uint64(m.Container)+uint64(m.Size))
	}
	return min(uids, gids), nil
}

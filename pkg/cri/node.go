package cri

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/storage"
)

// kubeletAPIVersion is what the kubelet expects in Version (proto:
// VersionResponse.version).
const kubeletAPIVersion = "0.1.0"

// nodeService serves the calls about the runtime and the node.
type nodeService struct {
	version    string
	network    netns.Network
	delegation cgroup.Delegation
	missingIDs string
	degraded   string
	handlers   pod.Handlers
	host       ocispec.Host
	uids, gids []idmap.Map
	rootfs     *storage.Rootfs
	info       func() map[string]any
}

// Version names the runtime.
func (s *nodeService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           kubeletAPIVersion,
		RuntimeName:       "subpod",
		RuntimeVersion:    s.version,
		RuntimeApiVersion: "v1",
	}, nil
}

// Status returns whether pods can run, and the features of the runtime handlers.
func (s *nodeService) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.network.Status(ctx); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	limits := &runtimeapi.RuntimeCondition{Type: "ResourceLimits", Status: s.delegation.Delegated}
	if !limits.Status {
		limits.Reason, limits.Message = "CgroupNotDelegated", s.delegation.Reason
	} else if missing := s.delegation.Missing(); len(missing) > 0 {
		limits.Reason = "CgroupControllersMissing"
		limits.Message = "limits of these controllers are left out, since they are not delegated: " + strings.Join(missing, ", ")
	}
	ids := &runtimeapi.RuntimeCondition{Type: "AllIDs", Status: s.missingIDs == ""}
	if !ids.Status {
		ids.Reason, ids.Message = "SingleID", s.missingIDs
	}
	ready := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	if s.degraded != "" {
		ready.Reason, ready.Message = "ConfigurationNotUsed", s.degraded
	}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			ready, network, limits, ids,
		}},
		RuntimeHandlers: s.handlerFeatures(),
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if req.Verbose {
		resp.Info = map[string]string{}
		for name, v := range s.info() {
			text, err := json.Marshal(v)
			if err != nil {
				return nil, fmt.Errorf("encode the verbose status: %w", err)
			}
			resp.Info[name] = string(text)
		}
	}
	return resp, nil
}

// RuntimeConfig returns the cgroup driver that the kubelet must use (KEP-4033).
func (s *nodeService) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.delegation.Driver == "systemd" {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig passes the node's pod CIDRs, separated by commas, to the pod
// network.
func (s *nodeService) UpdateRuntimeConfig(ctx context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	var cidrs []netip.Prefix
	for text := range strings.SplitSeq(req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(), ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "pod_cidr %q is not a CIDR: %v", text, err)
		}
		cidrs = append(cidrs, cidr)
	}
	if len(cidrs) > 0 {
		if err := s.network.SetPodCIDR(ctx, cidrs); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

const noCheckpoint = "checkpoint and restore need CRIU, which needs privileges over the host that no user namespace gives"

// CheckpointContainer returns Unimplemented: CRIU requires host privileges.
func (s *nodeService) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, status.Error(codes.Unimplemented, noCheckpoint)
}

// CheckpointPod returns Unimplemented: CRIU requires host privileges.
func (s *nodeService) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, status.Error(codes.Unimplemented, noCheckpoint)
}

// RestorePod returns Unimplemented: CRIU requires host privileges.
func (s *nodeService) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, status.Error(codes.Unimplemented, noCheckpoint)
}

// minUserNSRange is how many IDs the kubelet gives each pod with a user
// namespace of its own, from the next multiple on (KEP-127).
const minUserNSRange = 65536

// handlerFeatures lists the runtime handlers and what each can do.
func (s *nodeService) handlerFeatures() []*runtimeapi.RuntimeHandler {
	// The kubelet takes whole ranges above the first: without one in the node,
	// hostUsers: false would fail there.
	userNamespaces := idmap.Covered(s.uids, minUserNSRange, minUserNSRange) && idmap.Covered(s.gids, minUserNSRange, minUserNSRange) &&
		s.rootfs.Nestable() == nil
	var out []*runtimeapi.RuntimeHandler
	for _, name := range s.handlers.Names() {
		known := s.handlers.Known[cmp.Or(name, s.handlers.Default)]
		out = append(out, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: known.RecursiveReadOnlyMounts && s.host.RecursiveReadOnly,
			UserNamespaces:          userNamespaces,
		}})
	}
	return out
}

package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubeletAPIVersion is what the kubelet expects in Version (proto:
// VersionResponse.version).
const kubeletAPIVersion = "0.1.0"

// Version names the runtime.
func (s *Service) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           kubeletAPIVersion,
		RuntimeName:       "subpod",
		RuntimeVersion:    s.RuntimeVersion,
		RuntimeApiVersion: "v1",
	}, nil
}

// Status tells whether pods can run, and with what.
func (s *Service) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.Network.Status(ctx); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	limits := &runtimeapi.RuntimeCondition{Type: "ResourceLimits", Status: s.Cgroup.Delegated}
	if !limits.Status {
		limits.Reason, limits.Message = "CgroupNotDelegated", s.Cgroup.Reason
	} else if missing := s.Cgroup.Missing(); len(missing) > 0 {
		limits.Reason = "CgroupControllersMissing"
		limits.Message = "limits of these controllers are left out, since they are not delegated: " + strings.Join(missing, ", ")
	}
	ids := &runtimeapi.RuntimeCondition{Type: "AllIDs", Status: s.MissingIDs == ""}
	if !ids.Status {
		ids.Reason, ids.Message = "SingleID", s.MissingIDs
	}
	ready := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	if s.Degraded != "" {
		ready.Reason, ready.Message = "ConfigurationNotUsed", s.Degraded
	}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			ready, network, limits, ids,
		}},
		RuntimeHandlers: s.Runtime.HandlerFeatures(),
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if req.Verbose {
		resp.Info = map[string]string{}
		for name, v := range s.Info() {
			text, err := json.Marshal(v)
			if err != nil {
				return nil, fmt.Errorf("encode the verbose status: %w", err)
			}
			resp.Info[name] = string(text)
		}
	}
	return resp, nil
}

// RuntimeConfig tells the kubelet which cgroup driver to use (KEP-4033).
func (s *Service) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.Cgroup.Driver == "systemd" {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig gives the pod network the node's pod CIDRs, separated by
// commas.
func (s *Service) UpdateRuntimeConfig(ctx context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
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
		if err := s.Network.SetPodCIDR(ctx, cidrs); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

const noCheckpoint = "checkpoint and restore need CRIU, which needs privileges over the host that no user namespace gives"

// CheckpointContainer is not to be had without root.
func (s *Service) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, status.Error(codes.Unimplemented, noCheckpoint)
}

// CheckpointPod is not to be had without root.
func (s *Service) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, status.Error(codes.Unimplemented, noCheckpoint)
}

// RestorePod is not to be had without root.
func (s *Service) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, status.Error(codes.Unimplemented, noCheckpoint)
}

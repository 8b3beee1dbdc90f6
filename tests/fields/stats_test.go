package fields

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStatsAndMetrics(t *testing.T) {
	start(t, nil, func(e env) {
		ctx := e.Context()
		p := e.pod("stats", func(c *podConfig) { c.Labels = map[string]string{"stats": "yes"} })
		other := e.pod("other", nil)
		other.start("c", idle())
		c := p.start("busy", sh("dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null; while :; do :; done"), func(c *ctrConfig) { c.Labels = map[string]string{"busy": "yes"} })
		stats := func() *runtimeapi.ContainerStats {
			resp, err := e.cri.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
			e.must(err)
			return resp.Stats
		}
		first := stats()
		var s *runtimeapi.ContainerStats
		eventually(e, "the statistics show what the container does", func() error {
			s = stats()
			switch {
			case s.GetCpu().GetUsageCoreNanoSeconds().GetValue() <= first.GetCpu().GetUsageCoreNanoSeconds().GetValue(),
				s.GetCpu().GetUsageNanoCores().GetValue() == 0, s.GetMemory().GetWorkingSetBytes().GetValue() == 0,
				s.GetWritableLayer().GetUsedBytes().GetValue() < 3<<20:
				return fmt.Errorf("%v", s)
			}
			return nil
		})
		e.equal("attributes", fmt.Sprint(s.Attributes.GetId(), s.Attributes.GetMetadata().GetName(), s.Attributes.GetLabels()["busy"]), c.id+"busyyes")
		if _, err := os.Stat(s.GetWritableLayer().GetFsId().GetMountpoint()); err != nil {
			e.Errorf("file system of the writable layer: %v", err)
		}
		for what, f := range map[string]*runtimeapi.ContainerStatsFilter{
			"ID": {Id: c.id}, "pod": {PodSandboxId: p.id}, "label": {LabelSelector: map[string]string{"busy": "yes"}},
		} {
			list, err := e.cri.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: f})
			e.must(err)
			idOf := func(s *runtimeapi.ContainerStats) string { return s.GetAttributes().GetId() }
			sameIDs(e, "container statistics by "+what, list.Stats, idOf, []string{c.id})
			stream, err := e.cri.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{Filter: f})
			e.must(err)
			sameIDs(e, "streamed", collect(e, stream.Recv, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats), idOf, []string{c.id})
		}
		pods, err := e.cri.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
		e.must(err)
		linux := pods.GetStats().GetLinux()
		if linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetMemory().GetWorkingSetBytes().GetValue() == 0 ||
			linux.GetProcess().GetProcessCount().GetValue() == 0 || linux.GetNetwork().GetDefaultInterface().GetName() != "eth0" || len(linux.Containers) != 1 {
			e.Errorf("statistics of the pod: %v", linux)
		}
		for what, f := range map[string]*runtimeapi.PodSandboxStatsFilter{"ID": {Id: p.id}, "label": {LabelSelector: map[string]string{"stats": "yes"}}} {
			list, err := e.cri.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: f})
			e.must(err)
			idOf := func(s *runtimeapi.PodSandboxStats) string { return s.GetAttributes().GetId() }
			sameIDs(e, "pod statistics by "+what, list.Stats, idOf, []string{p.id})
			stream, err := e.cri.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{Filter: f})
			e.must(err)
			sameIDs(e, "streamed", collect(e, stream.Recv, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats), idOf, []string{p.id})
		}
		_, err = e.cri.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "0123"})
		e.refused("statistics of no container", err, codes.NotFound)
		_, err = e.cri.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "0123"})
		e.refused("statistics of no pod", err, codes.NotFound)
		metrics(e, p, c)
	})
}

// metrics checks that what is measured is described, label by label.
func metrics(e env, p *pod, c *container) {
	descriptors, err := e.cri.ListMetricDescriptors(e.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	e.must(err)
	known := map[string]int{}
	for _, d := range descriptors.Descriptors {
		known[d.Name] = len(d.LabelKeys)
		if d.Help == "" {
			e.Errorf("metric %s has no help", d.Name)
		}
	}
	list, err := e.cri.ListPodSandboxMetrics(e.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	e.must(err)
	stream, err := e.cri.StreamPodSandboxMetrics(e.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	e.must(err)
	streamed := collect(e, stream.Recv, (*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)
	for _, all := range [][]*runtimeapi.PodSandboxMetrics{list.PodMetrics, streamed} {
		names := map[string]bool{}
		for _, pm := range all {
			if pm.PodSandboxId != p.id {
				continue
			}
			ofPod := pm.Metrics
			for _, cm := range pm.ContainerMetrics {
				e.equal("container of the metrics", cm.ContainerId, c.id)
				ofPod = append(ofPod, cm.Metrics...)
			}
			for _, m := range ofPod {
				names[m.Name] = true
				if n, ok := known[m.Name]; !ok || n != len(m.LabelValues) {
					e.Errorf("metric %s with %d labels is not described like that", m.Name, len(m.LabelValues))
				}
			}
		}
		for _, want := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_network_receive_bytes_total"} {
			if !names[want] {
				e.Errorf("no metric %s", want)
			}
		}
	}
}

func TestEvents(t *testing.T) {
	only(t, nil, func(e env) {
		ctx, cancel := context.WithCancel(e.Context())
		defer cancel()
		stream, err := e.cri.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		e.must(err)
		_, err = stream.Header() // once it is there, we listen
		e.must(err)
		p := e.pod("events", nil)
		c := p.start("c", sh("exit 3"))
		c.exited()
		_, err = e.cri.RemoveContainer(e.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
		e.must(err)
		_, err = e.cri.StopPodSandbox(e.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		e.must(err)
		p.remove()
		type event struct {
			id   string
			kind runtimeapi.ContainerEventType
		}
		var got []event
		want := []event{
			{p.id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT}, {p.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT},
			{c.id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT},
			{c.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT}, {c.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT},
			{c.id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT}, {p.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT},
			{p.id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT},
		}
		for len(got) < len(want) {
			m, err := stream.Recv()
			e.must(err)
			got = append(got, event{m.ContainerId, m.ContainerEventType})
			if m.PodSandboxStatus.GetId() != p.id || m.CreatedAt == 0 {
				e.Errorf("event %v: pod status %v, time %d", m.ContainerEventType, m.PodSandboxStatus, m.CreatedAt)
			}
			if m.ContainerId == c.id && m.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT &&
				(len(m.ContainersStatuses) != 1 || m.ContainersStatuses[0].ExitCode != 3) {
				e.Errorf("event of the end: %v", m.ContainersStatuses)
			}
		}
		if !slices.Equal(got, want) {
			e.Errorf("events %v, want %v", got, want)
		}
	})
}

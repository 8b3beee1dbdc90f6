package main

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// TestStateFor: a container of "create" that its node took along before it was started is
// created for its user; one that ran, could not be started, or is of a client of the CRI
// has exited.
func TestStateFor(t *testing.T) {
	const lost = "ContainerStatusUnknown"
	ours := map[string]string{api.LabelMadeBy: api.MadeByRun}
	for _, c := range []struct {
		labels  map[string]string
		started int64
		reason  string
		want    string
	}{
		{ours, 0, lost, "created"}, {ours, 5, lost, "exited"}, {ours, 0, "StartError", "exited"}, {nil, 0, lost, "exited"},
	} {
		x := client.Container{
			Container: &runtimeapi.Container{Id: "0123456789ab", Metadata: &runtimeapi.ContainerMetadata{Name: "a"}},
			Pod:       &runtimeapi.PodSandbox{Labels: c.labels, Metadata: &runtimeapi.PodSandboxMetadata{Name: "a"}},
		}
		st := &runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_EXITED, StartedAt: c.started, FinishedAt: 9, ExitCode: 137, Reason: c.reason}
		row, fields := newContainerRow(x, st, nil), stateFields(x, st, moreFacts{})
		if row.State != c.want || fields.Status != c.want {
			t.Errorf("%+v: %s, %s", c, row.State, fields.Status)
		}
		if created := c.want == "created"; (row.ExitCode == nil) != created || (fields.ExitCode == 0) != created || row.status() == "" {
			t.Errorf("%+v: %+v, %+v", c, row, fields)
		}
	}
}

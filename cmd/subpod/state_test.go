package main

import (
	"encoding/json"
	"strings"
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
		row, fields := newContainerRow(x, st, false, nil), stateFields(x, st, moreFacts{})
		if row.State != c.want || fields.Status != c.want {
			t.Errorf("%+v: %s, %s", c, row.State, fields.Status)
		}
		if created := c.want == "created"; (row.ExitCode == nil) != created || (fields.ExitCode == 0) != created || row.status() == "" {
			t.Errorf("%+v: %+v, %+v", c, row, fields)
		}
	}
}

// TestStateOfPaused: what is paused is neither running nor exited, and is found by its
// state.
func TestStateOfPaused(t *testing.T) {
	x := client.Container{
		Container: &runtimeapi.Container{Id: "0123456789ab", Metadata: &runtimeapi.ContainerMetadata{Name: "a"}},
		Pod:       &runtimeapi.PodSandbox{Metadata: &runtimeapi.PodSandboxMetadata{Name: "a"}},
	}
	st := &runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_RUNNING, StartedAt: 5}
	rows := []containerRow{newContainerRow(x, st, true, nil), newContainerRow(x, st, false, nil)}
	if rows[0].State != "paused" || rows[0].status() != "Paused" || rows[1].State != "running" {
		t.Errorf("%q %q, %q", rows[0].State, rows[0].status(), rows[1].State)
	}
	rows[0].Health = "healthy" // of before
	if got := rows[0].status(); got != "Paused" {
		t.Errorf("with a health check: %q", got)
	}
	for _, want := range []string{"paused", "running"} {
		filter, err := parsePsFilters([]string{"status=" + want})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := filter.apply(rows); err != nil || len(got) != 1 || got[0].State != want {
			t.Errorf("status=%s: %+v, %v", want, got, err)
		}
	}
	if s := stateFields(x, st, moreFacts{Paused: true}); s.Status != "paused" || !s.Paused {
		t.Errorf("inspect: %+v", s)
	}
}

// TestPastEnv: an ended container had the variables of its image, and those that override
// or unset them.
func TestPastEnv(t *testing.T) {
	var own moreFacts
	if err := json.Unmarshal([]byte(`{"config": {"envs": [{"key": "B", "value": "2"}, {"key": "C", "value": ""}]}}`), &own); err != nil {
		t.Fatal(err)
	}
	image := []string{"A=a", "B=1", "D=d"}
	for want, options := range map[string]*api.ContainerOptions{
		"A=a B=2 D=d C=": {}, "A=a B=2 C=": {UnsetEnv: []string{"D"}}, "B=2 C=": {UnsetAll: true},
	} {
		var to inspectedConfig
		own.pastEnv(&to, image, options)
		if got := strings.Join(to.Env, " "); got != want {
			t.Errorf("%+v: %q, want %q", options, got, want)
		}
	}
}

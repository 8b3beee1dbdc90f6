package kubernetes

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// operations are the kubelet's calls for a pod that starts, as its metrics name them.
var operations = []string{"run_podsandbox", "create_container", "start_container"}

// calls are what a kubelet says of its calls, in seconds and their count.
type calls map[string][2]float64

func (c *calls) add(after, before calls) {
	if *c == nil {
		*c = calls{}
	}
	for name, a := range after {
		sum := (*c)[name]
		for i := range sum {
			sum[i] += a[i] - before[name][i]
		}
		(*c)[name] = sum
	}
}

// callsSoFar asks the worker's kubelet, whatever its runtime.
func (s *starter) callsSoFar(t *testing.T) calls {
	t.Helper()
	out, err := s.in("curl", "-sS", "--insecure", "--cert", s.pki+"/apiserver-kubelet-client.crt", "--key", s.pki+"/apiserver-kubelet-client.key",
		"https://127.0.0.1:10250/metrics")
	must(t, err)
	found := calls{}
	for line := range strings.Lines(out) {
		for i, kind := range []string{"sum", "count"} {
			text, ok := strings.CutPrefix(line, "kubelet_runtime_operations_duration_seconds_"+kind+`{operation_type="`)
			if !ok {
				continue
			}
			name, value, _ := strings.Cut(strings.TrimSpace(text), `"} `)
			number, err := strconv.ParseFloat(value, 64)
			must(t, err)
			of := found[name]
			of[i] = number
			found[name] = of
		}
	}
	return found
}

// steps are how long subpod has taken for each step of CreateContainer, and for all of it.
type steps struct {
	order []string
	took  map[string][]time.Duration
}

const wholeCall = "all of it"

// readSteps adds the last requests' steps, one of each pod.
func (s *starter) readSteps(t *testing.T, to *steps) {
	t.Helper()
	if s.subpod == nil {
		return
	}
	if to.took == nil {
		to.took = map[string][]time.Duration{}
	}
	lines := bufio.NewScanner(strings.NewReader(s.subpod.subpod("system", "trace", "--method", "CreateContainer", "-n", strconv.Itoa(*podStart), "-o", "json")))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var trace api.Trace
		must(t, json.Unmarshal(lines.Bytes(), &trace))
		sums := map[string]time.Duration{}
		for _, step := range trace.Steps {
			name := strings.Repeat("- ", depth(trace, step.Parent)) + step.Name
			if !slices.Contains(to.order, name) {
				to.order = append(to.order, name)
			}
			sums[name] += step.Took
		}
		sums[wholeCall] = trace.Took
		for name, took := range sums {
			to.took[name] = append(to.took[name], took)
		}
	}
	must(t, lines.Err())
}

// depth is how deep the steps below a step are.
func depth(t api.Trace, parent int) int {
	if parent < 0 {
		return 0
	}
	return 1 + depth(t, t.Steps[parent].Parent)
}

// startAlone makes as many containers by subpod's socket alone, while nothing else happens:
// with the configuration that the kubelet has sent for a pod, and with none of it. The
// worker has no kubelet any more, which would remove what it has not made.
func (s *starter) startAlone(t *testing.T, a *apiServer) {
	t.Helper()
	if s.subpod == nil {
		return
	}
	pod, container, c := s.sent(t, a)
	s.subpod.stopKubelet()
	plainPod := &runtimeapi.PodSandboxConfig{LogDirectory: pod.LogDirectory, Linux: &runtimeapi.LinuxPodSandboxConfig{
		SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: pod.Linux.SecurityContext.NamespaceOptions}}}
	plainContainer := &runtimeapi.ContainerConfig{Image: container.Image, Command: container.Command, LogPath: container.LogPath,
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: container.Linux.SecurityContext.NamespaceOptions}}}
	for range startRounds {
		s.startByCRI(t, pod, container)
		s.readSteps(t, &s.alone)
		s.startByCRI(t, plainPod, plainContainer)
		s.readSteps(t, &s.plain)
	}
	s.remove(t, c.PodSandboxId, c.Id)
}

// sent returns what the kubelet sends for a pod, which goes on running: so the kubelet's
// files for it are there.
func (s *starter) sent(t *testing.T, a *apiServer) (pod *runtimeapi.PodSandboxConfig, container *runtimeapi.ContainerConfig, c *runtimeapi.Container) {
	t.Helper()
	name := s.name + "-sent"
	made, err := a.do(t.Context(), "POST", podsPath, podToStart(s, name, "sent"))
	must(t, err)
	made.Close()
	cri, ctx := s.subpod.CRI(), t.Context()
	s.subpod.eventually(func() error {
		list, err := cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
			State:         &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
			LabelSelector: map[string]string{"io.kubernetes.pod.name": name}}})
		if err == nil && len(list.Containers) != 1 {
			err = fmt.Errorf("%d containers of the pod run", len(list.Containers))
		}
		if err == nil {
			c = list.Containers[0]
		}
		return err
	})
	podStatus, err := cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: c.PodSandboxId, Verbose: true})
	must(t, err)
	status, err := cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id, Verbose: true})
	must(t, err)
	pod, container = &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
	must(t, json.Unmarshal([]byte(podStatus.Info["info"]), &struct{ Config any }{pod}))
	must(t, json.Unmarshal([]byte(status.Info["info"]), &struct{ Config any }{container}))
	return pod, container, c
}

// startByCRI makes and removes pods one after the other.
func (s *starter) startByCRI(t *testing.T, pod *runtimeapi.PodSandboxConfig, container *runtimeapi.ContainerConfig) {
	t.Helper()
	cri, ctx := s.subpod.CRI(), t.Context()
	for i := range *podStart {
		name := fmt.Sprintf("alone-%d", i)
		pod.Metadata = &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "alone", Uid: name}
		container.Metadata = &runtimeapi.ContainerMetadata{Name: "c"}
		made, err := cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
		must(t, err)
		created, err := cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: made.PodSandboxId, Config: container, SandboxConfig: pod})
		must(t, err)
		_, err = cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId})
		must(t, err)
		s.remove(t, made.PodSandboxId, created.ContainerId)
	}
}

// remove removes a pod whose container heeds no signal.
func (s *starter) remove(t *testing.T, pod, container string) {
	t.Helper()
	cri, ctx := s.subpod.CRI(), t.Context()
	_, err := cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: container})
	must(t, err)
	_, err = cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
	must(t, err)
	_, err = cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
	must(t, err)
}

// ms is a time as tables have it.
func ms(d time.Duration) string { return strconv.FormatFloat(float64(d)/1e6, 'f', 1, 64) }

// percentile returns the one of 100 that is not above so many.
func percentile(took []time.Duration, of int) time.Duration {
	if len(took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(took))
	return sorted[(len(sorted)*of-1)/100]
}

// startTable is what TestPodStart has found, for docs/kubernetes.md.
func startTable(starters []*starter) string {
	slices.SortFunc(starters, func(a, b *starter) int { return strings.Compare(b.what, a.what) })
	var b strings.Builder
	line := func(first string, cell func(*starter) string) {
		fmt.Fprintf(&b, "| %s |", first)
		for _, s := range starters {
			fmt.Fprintf(&b, " %s |", cell(s))
		}
		b.WriteString("\n")
	}
	line("ms", func(s *starter) string { return s.what })
	line("---", func(*starter) string { return "---" })
	last := starters[len(starters)-1]
	for _, atOnce := range slices.Sorted(maps.Keys(last.took)) {
		line(fmt.Sprintf("a pod, %d at a time: median / 95 of 100", atOnce), func(s *starter) string {
			return fmt.Sprintf("%d / %d", percentile(s.took[atOnce], 50).Milliseconds(), percentile(s.took[atOnce], 95).Milliseconds())
		})
		line(fmt.Sprintf("all %d, %d at a time", *podStart, atOnce), func(s *starter) string {
			return fmt.Sprint(percentile(s.all[atOnce], 50).Milliseconds())
		})
	}
	for _, name := range operations {
		line("mean of `"+name+"`", func(s *starter) string {
			return strconv.FormatFloat(1000*s.calls[name][0]/max(1, s.calls[name][1]), 'f', 1, 64)
		})
	}
	for _, s := range starters {
		if s.subpod == nil {
			continue
		}
		fmt.Fprintf(&b, "\n| %s: CreateContainer, ms | by the kubelet | as the kubelet, alone | plain |\n|---|---|---|---|\n", s.what)
		for _, name := range append(s.steps.order, wholeCall) {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, ms(percentile(s.steps.took[name], 50)), ms(percentile(s.alone.took[name], 50)), ms(percentile(s.plain.took[name], 50)))
		}
	}
	return b.String()
}

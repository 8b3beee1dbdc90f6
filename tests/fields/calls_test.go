package fields

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// only is for what no OCI runtime has a part in.
func only(t *testing.T, images []string, test func(env)) {
	startWith(t, images, []string{"crun"}, test)
}

// semantic matches a semantic version (semver.org).
var semantic = regexp.MustCompile(`^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

func TestRuntimeCalls(t *testing.T) {
	only(t, nil, func(e env) {
		v, err := e.cri.Version(e.Context(), &runtimeapi.VersionRequest{Version: "v1"})
		e.must(err)
		e.equal("version", fmt.Sprint(v.Version, " ", v.RuntimeName, " ", v.RuntimeApiVersion), "0.1.0 subpod v1")
		if !semantic.MatchString(v.RuntimeVersion) {
			e.Errorf("the runtime's version %q is not semantic", v.RuntimeVersion)
		}
		status, err := e.cri.Status(e.Context(), &runtimeapi.StatusRequest{Verbose: true})
		e.must(err)
		var names []string
		for _, h := range status.RuntimeHandlers {
			names = append(names, h.Name)
			if !h.Features.RecursiveReadOnlyMounts {
				e.Errorf("handler %q has no recursive_read_only_mounts", h.Name)
			}
		}
		e.equal("runtime handlers", names, "[ crun runc]")
		if !status.Features.GetSupplementalGroupsPolicy() || !status.Features.GetMountOptions() {
			e.Errorf("features %v", status.Features)
		}
		for _, key := range []string{"config", "node", "cgroup", "storage"} {
			if !json.Valid([]byte(status.Info[key])) {
				e.Errorf("verbose status: %s is %q, not JSON", key, status.Info[key])
			}
		}
		plain, err := e.cri.Status(e.Context(), &runtimeapi.StatusRequest{})
		e.must(err)
		e.equal("info without verbose", len(plain.Info), 0)

		config, err := e.cri.RuntimeConfig(e.Context(), &runtimeapi.RuntimeConfigRequest{})
		e.must(err)
		e.equal("cgroup driver", config.GetLinux().GetCgroupDriver(), "CGROUPFS")

		_, err = e.cri.CheckpointContainer(e.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: "0123", Location: e.n.Dir + "/checkpoint"})
		e.refused("CheckpointContainer", err, codes.Unimplemented, "CRIU", "privileges")
		_, err = e.cri.CheckpointPod(e.Context(), &runtimeapi.CheckpointPodRequest{})
		e.refused("CheckpointPod", err, codes.Unimplemented, "CRIU", "privileges")
		_, err = e.cri.RestorePod(e.Context(), &runtimeapi.RestorePodRequest{})
		e.refused("RestorePod", err, codes.Unimplemented, "CRIU", "privileges")
	})
}

// TestPodCIDR: new pods have addresses of the node's pod CIDR, and pods of the old
// range stay reachable.
func TestPodCIDR(t *testing.T) {
	n := node.Start(t, node.Options{Config: bridge})
	e := env{T: t, n: n, cri: n.CRI()}
	e.pull(busybox)
	setCIDR := func(cidr string) error {
		_, err := e.cri.UpdateRuntimeConfig(e.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	before := e.pod("before", nil)
	e.must(setCIDR("10.123.7.0/24"))
	after := e.pod("after", nil)
	_, subnet, _ := net.ParseCIDR("10.123.7.0/24")
	if !subnet.Contains(net.ParseIP(after.status().Network.Ip)) {
		e.Errorf("a new pod has the address %s, not one of the pod CIDR", after.status().Network.Ip)
	}
	before.start("web", sh("while :; do echo hello | nc -l -p 80 -w 2; done"))
	client := after.start("c", idle())
	eventually(e, "a pod of the old range answers", func() error {
		r := client.try("sh", "-c", "echo | nc -w 1 "+before.status().Network.Ip+" 80")
		if !strings.Contains(string(r.Stdout), "hello") {
			return fmt.Errorf("%s%s", r.Stdout, r.Stderr)
		}
		return nil
	})
	e.refused("a pod CIDR that is none", setCIDR("10.1.2.3"), codes.InvalidArgument, "10.1.2.3")
	e.must(setCIDR(""))
}

// TestIdempotence: what the comments of api.proto demand of a call that is made
// again, or about something that is gone.
func TestIdempotence(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("again", nil)
		runAgain := func(config *podConfig) (string, error) {
			resp, err := e.cri.RunPodSandbox(e.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: e.handler})
			return resp.GetPodSandboxId(), err
		}
		id, err := runAgain(p.config)
		e.must(err)
		e.equal("RunPodSandbox again", id, p.id)
		other := proto.CloneOf(p.config)
		other.Hostname = "other"
		_, err = runAgain(other)
		e.refused("RunPodSandbox of another one by this name", err, codes.AlreadyExists, p.id)
		next := proto.CloneOf(p.config)
		next.Metadata.Attempt = 1
		id, err = runAgain(next)
		e.must(err)
		if id == p.id {
			e.Error("another attempt has the same ID")
		}
		(&pod{env: e, id: id, config: next}).remove()

		c := p.create("c", idle())
		again, err := p.tryCreate("c", idle())
		e.must(err)
		e.equal("CreateContainer again", again.id, c.id)
		_, err = p.tryCreate("c", idle(), func(c *ctrConfig) { c.WorkingDir = "/tmp" })
		e.refused("CreateContainer of another one by this name", err, codes.AlreadyExists, c.id)
		startIt := func(id string) error {
			_, err := e.cri.StartContainer(e.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		}
		e.must(startIt(c.id))
		e.refused("StartContainer again", startIt(c.id), codes.FailedPrecondition, "running")
		again, err = p.tryCreate("c", idle())
		e.must(err)
		e.equal("CreateContainer again, while it runs", again.id, c.id)
		c.stop(5)
		c.stop(5)
		e.refused("StartContainer of an exited one", startIt(c.id), codes.FailedPrecondition, "exited")
		remove := func(id string) {
			_, err := e.cri.RemoveContainer(e.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
			e.must(err)
		}
		remove(c.id)
		remove(c.id)
		running := p.start("running", idle())
		remove(running.id) // also one that runs
		_, err = e.cri.ContainerStatus(e.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: running.id})
		e.refused("status of a removed container", err, codes.NotFound, running.id)

		last := p.start("last", idle())
		for range 2 {
			_, err = e.cri.StopPodSandbox(e.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
			e.must(err)
		}
		e.equal("state of a stopped pod", p.status().State, "SANDBOX_NOTREADY")
		e.equal("state of its container", last.status().State, "CONTAINER_EXITED")
		_, err = p.tryCreate("late", idle())
		e.refused("CreateContainer in a stopped pod", err, codes.FailedPrecondition)
		_, err = e.cri.PortForward(e.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80}})
		e.refused("PortForward of a stopped pod", err, codes.FailedPrecondition)
		p.remove()
		p.remove()
		_, err = e.cri.StopPodSandbox(e.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		e.must(err)
		_, err = e.cri.StopContainer(e.Context(), &runtimeapi.StopContainerRequest{ContainerId: last.id})
		e.must(err)
		_, err = e.cri.PodSandboxStatus(e.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
		e.refused("status of a removed pod", err, codes.NotFound, p.id)
	})
}

// collect reads a stream to its end.
func collect[M, T any](e env, next func() (M, error), items func(M) []T) (all []T) {
	e.Helper()
	for {
		m, err := next()
		if errors.Is(err, io.EOF) {
			return all
		}
		e.must(err)
		all = append(all, items(m)...)
	}
}

func TestListsAndFilters(t *testing.T) {
	only(t, nil, func(e env) {
		ctx := e.Context()
		label := func(v string) func(*podConfig) {
			return func(c *podConfig) { c.Labels = map[string]string{"tier": v, "all": "yes"} }
		}
		a, b := e.pod("a", label("front")), e.pod("b", label("back"))
		_, err := e.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.id})
		e.must(err)
		for what, f := range map[string]struct {
			filter *runtimeapi.PodSandboxFilter
			want   []string
		}{
			"none":             {nil, []string{a.id, b.id}},
			"label":            {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"tier": "front"}}, []string{a.id}},
			"two labels":       {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"tier": "back", "all": "yes"}}, []string{b.id}},
			"labels, no match": {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"tier": "back", "all": "no"}}, nil},
			"ID":               {&runtimeapi.PodSandboxFilter{Id: a.id}, []string{a.id}},
			"prefix of an ID":  {&runtimeapi.PodSandboxFilter{Id: a.id[:10]}, []string{a.id}},
			"state":            {&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}, []string{b.id}},
			"ID and state":     {&runtimeapi.PodSandboxFilter{Id: a.id, State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}, nil},
		} {
			list, err := e.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: f.filter})
			e.must(err)
			sameIDs(e, "pods by "+what, list.Items, (*runtimeapi.PodSandbox).GetId, f.want)
			s, err := e.cri.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: f.filter})
			e.must(err)
			sameIDs(e, "streamed pods by "+what, collect(e, s.Recv, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes), (*runtimeapi.PodSandbox).GetId, f.want)
		}

		tag := func(v string) change { return func(c *ctrConfig) { c.Labels = map[string]string{"role": v} } }
		made, runs, ended := a.create("made", idle(), tag("x")), a.start("runs", idle(), tag("y")), a.start("ended", sh("true"), tag("y"))
		ended.exited()
		in := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
			return &runtimeapi.ContainerStateValue{State: s}
		}
		for what, f := range map[string]struct {
			filter *runtimeapi.ContainerFilter
			want   []string
		}{
			"none":            {nil, []string{made.id, runs.id, ended.id}},
			"pod":             {&runtimeapi.ContainerFilter{PodSandboxId: a.id}, []string{made.id, runs.id, ended.id}},
			"another pod":     {&runtimeapi.ContainerFilter{PodSandboxId: b.id}, nil},
			"label":           {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"role": "y"}}, []string{runs.id, ended.id}},
			"created":         {&runtimeapi.ContainerFilter{State: in(runtimeapi.ContainerState_CONTAINER_CREATED)}, []string{made.id}},
			"running":         {&runtimeapi.ContainerFilter{State: in(runtimeapi.ContainerState_CONTAINER_RUNNING)}, []string{runs.id}},
			"exited":          {&runtimeapi.ContainerFilter{State: in(runtimeapi.ContainerState_CONTAINER_EXITED)}, []string{ended.id}},
			"ID":              {&runtimeapi.ContainerFilter{Id: runs.id}, []string{runs.id}},
			"label and state": {&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"role": "y"}, State: in(runtimeapi.ContainerState_CONTAINER_RUNNING)}, []string{runs.id}},
		} {
			list, err := e.cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: f.filter})
			e.must(err)
			sameIDs(e, "containers by "+what, list.Containers, (*runtimeapi.Container).GetId, f.want)
			s, err := e.cri.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: f.filter})
			e.must(err)
			sameIDs(e, "streamed containers by "+what, collect(e, s.Recv, (*runtimeapi.StreamContainersResponse).GetContainers), (*runtimeapi.Container).GetId, f.want)
		}

		images, err := e.cri.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		e.must(err)
		s, err := e.cri.StreamImages(ctx, &runtimeapi.StreamImagesRequest{})
		e.must(err)
		var ids []string
		for _, i := range images.Images {
			ids = append(ids, i.Id)
		}
		sameIDs(e, "streamed images", collect(e, s.Recv, (*runtimeapi.StreamImagesResponse).GetImages), (*runtimeapi.Image).GetId, ids)
		e.equal("image of the container is the image's ID", runs.status().ImageId, ids[0])
		one, err := e.cri.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "busybox"}}})
		e.must(err)
		e.equal("images by name", len(one.Images), 1)
		none, err := e.cri.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "docker.io/library/none"}})
		e.must(err)
		if none.Image != nil {
			e.Errorf("status of an image that is not there: %v", none.Image)
		}
		fs, err := e.cri.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		e.must(err)
		for _, u := range slices.Concat(fs.ImageFilesystems, fs.ContainerFilesystems) {
			if _, err := os.Stat(u.GetFsId().GetMountpoint()); err != nil {
				e.Errorf("mountpoint of a file system: %v", err)
			}
			if u.GetUsedBytes() == nil || u.GetInodesUsed() == nil || u.Timestamp == 0 {
				e.Errorf("incomplete usage %v", u)
			}
		}
		if fs.ImageFilesystems[0].UsedBytes.Value < 1<<20 {
			e.Errorf("images use %d bytes", fs.ImageFilesystems[0].UsedBytes.Value)
		}
	})
}

// sameIDs compares the IDs of a list, in any order.
func sameIDs[T any](e env, what string, got []T, id func(T) string, want []string) {
	e.Helper()
	var ids []string
	for _, item := range got {
		ids = append(ids, id(item))
	}
	slices.Sort(ids)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(ids, want) {
		e.Errorf("%s: %v, want %v", what, ids, want)
	}
}

func TestManyInOneStream(t *testing.T) {
	only(t, nil, func(e env) {
		// More than go into one message of a stream.
		const many = 130
		p := e.pod("many", nil)
		for i := range many {
			p.create(fmt.Sprint("c", i), idle())
		}
		s, err := e.cri.StreamContainers(e.Context(), &runtimeapi.StreamContainersRequest{})
		e.must(err)
		ids, messages := map[string]bool{}, 0
		for _, c := range collect(e, func() (*runtimeapi.StreamContainersResponse, error) { messages++; return s.Recv() },
			(*runtimeapi.StreamContainersResponse).GetContainers) {
			ids[c.Id] = true
		}
		e.equal("containers", len(ids), many)
		if messages < 3 { // two with containers, one for the end
			e.Errorf("%d containers came in %d messages", many, messages-1)
		}
	})
}

func TestExecCalls(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("exec", nil)
		c := p.start("c", idle())
		r := c.try("sh", "-c", "echo out; echo err >&2; exit 7")
		e.equal("ExecSync", fmt.Sprintf("%q %q %d", r.Stdout, r.Stderr, r.ExitCode), fmt.Sprintf("%q %q %d", "out\n", "err\n", 7))
		r = c.try("head", "-c", "20000000", "/dev/zero")
		if n := len(r.Stdout); n > 16<<20 || n < 15<<20 {
			e.Errorf("20 MB of output: %d bytes came", n)
		}
		r = c.try("sh", "-c", "head -c 20000000 /dev/zero; head -c 3000000 /dev/zero >&2")
		if out, err := len(r.Stdout), len(r.Stderr); err != 3000000 || out < 12<<20 {
			e.Errorf("20 MB of output and 3 MB of errors: %d and %d bytes came", out, err)
		}
		ctx, cancel := context.WithTimeout(e.Context(), node.Converge)
		defer cancel()
		_, err := e.cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", "sleep 1234 & sleep 1234"}, Timeout: 1})
		e.refused("ExecSync that takes too long", err, codes.DeadlineExceeded)
		e.must(ctx.Err()) // the server's deadline, not the client's
		eventually(e, "what it has started is gone", func() error {
			if out := c.exec("ps"); strings.Contains(out, "sleep 1234") {
				return errors.New(out)
			}
			return nil
		})
		_, err = e.cri.ExecSync(e.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id})
		e.refused("ExecSync without a command", err, codes.InvalidArgument)
		_, err = e.cri.ExecSync(e.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"no-such-command"}})
		if err == nil {
			e.Error("ExecSync of a command that is not there succeeded")
		}
		_, err = e.cri.ExecSync(e.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "0123", Cmd: []string{"true"}})
		e.refused("ExecSync in no container", err, codes.NotFound)

		resp, err := e.cri.Exec(e.Context(), &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}, Stdout: true})
		e.must(err)
		if !strings.HasPrefix(resp.Url, "http://127.0.0.1:") {
			e.Errorf("URL of an exec: %s", resp.Url)
		}
		// A URL is good for one session, and only for one that upgrades.
		plain, err := http.Get(resp.Url)
		e.must(err)
		plain.Body.Close()
		if plain.StatusCode < 400 {
			e.Errorf("a plain GET of the URL: %s", plain.Status)
		}
		for what, err := range map[string]error{
			"without streams": second(e.cri.Exec(e.Context(), &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}})),
			"tty and stderr":  second(e.cri.Exec(e.Context(), &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}, Tty: true, Stderr: true, Stdout: true})),
			"no command":      second(e.cri.Exec(e.Context(), &runtimeapi.ExecRequest{ContainerId: c.id, Stdout: true})),
			"attach with tty": second(e.cri.Attach(e.Context(), &runtimeapi.AttachRequest{ContainerId: c.id, Tty: true, Stdout: true})),
		} {
			e.refused(what, err, codes.InvalidArgument)
		}
		for what, err := range map[string]error{
			"Exec":        second(e.cri.Exec(e.Context(), &runtimeapi.ExecRequest{ContainerId: "0123", Cmd: []string{"true"}, Stdout: true})),
			"Attach":      second(e.cri.Attach(e.Context(), &runtimeapi.AttachRequest{ContainerId: "0123", Stdout: true})),
			"PortForward": second(e.cri.PortForward(e.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "0123", Port: []int32{80}})),
		} {
			e.refused(what+" of nothing", err, codes.NotFound)
		}
		c.stop(1)
		_, err = e.cri.Exec(e.Context(), &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}, Stdout: true})
		e.refused("Exec in an exited container", err, codes.FailedPrecondition)
		_, err = e.cri.Attach(e.Context(), &runtimeapi.AttachRequest{ContainerId: c.id, Stdout: true})
		e.refused("Attach to an exited container", err, codes.FailedPrecondition)
	})
}

// second drops a call's answer.
func second[T any](_ T, err error) error { return err }

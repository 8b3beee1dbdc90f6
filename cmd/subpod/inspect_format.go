package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// The types of this file are what "inspect --format" sees, and what its JSON has beside
// subpod's own fields: those that people ask Podman and Docker for, by the same names. What
// has no meaning here is not there, so that a template which asks for it fails.

// inspectedID is an ID by Podman's name and by Docker's.
type inspectedID struct {
	ID string `json:"Id"`
}

// Id returns the ID.
func (i inspectedID) Id() string { return i.ID }

type inspectedContainer struct {
	inspectedID
	Created         string
	Path            string
	Args            []string
	State           inspectedState
	Image           string
	ImageName       string
	ImageDigest     string
	Pod             string
	Name            string
	RestartCount    uint32
	LogPath         string
	PidFile         string
	Mounts          []inspectedMount
	Config          inspectedConfig
	HostConfig      inspectedHost
	NetworkSettings inspectedNetwork
}

type inspectedState struct {
	Status                string
	Running, Paused       bool
	OOMKilled             bool
	Pid                   int
	ExitCode              int32
	Error                 string
	StartedAt, FinishedAt string
	Health                *inspectedHealth `json:",omitempty"`
}

type inspectedHealth struct {
	Status        string
	FailingStreak int
	Log           []map[string]any
}

type inspectedMount struct {
	Type, Name, Source, Destination, Mode string
	RW                                    bool
}

type inspectedConfig struct {
	Hostname, User, Image, WorkingDir, StopSignal string
	Env, Cmd, Entrypoint                          []string
	Labels, Annotations                           map[string]string
	Tty, OpenStdin                                bool
	StopTimeout                                   int64
	ExposedPorts                                  map[string]struct{} `json:",omitempty"`
}

type inspectedHost struct {
	RestartPolicy struct {
		Name              string
		MaximumRetryCount uint32
	}
	AutoRemove, Privileged, ReadonlyRootfs bool
	Init                                   bool
	Binds                                  []string
	PortBindings                           map[string][]inspectedPort
	NetworkMode, PidMode                   string
	CapAdd, CapDrop                        []string
	Memory, MemorySwap, NanoCpus           int64
	CpuShares, CpuQuota, CpuPeriod         int64
	CpusetCpus                             string
	PidsLimit                              int64
	OomScoreAdj                            int64
	ShmSize                                int64
}

type inspectedPort struct{ HostIp, HostPort string }

type inspectedNetwork struct {
	IPAddress, Gateway, MacAddress, GlobalIPv6Address, SandboxKey string
	Ports                                                         map[string][]inspectedPort
	Networks                                                      map[string]inspectedAttachment
}

type inspectedAttachment struct {
	IPAddress, Gateway, MacAddress, GlobalIPv6Address string
	Aliases                                           []string
}

// podFacts is the part of a pod's verbose status that inspect reads.
type podFacts struct {
	Config sandboxConfig `json:"config"`
	Facts  struct {
		Pins    struct{ Net string } `json:"pins"`
		Network struct {
			MAC      string   `json:"mac"`
			Gateways []string `json:"gateways"`
		} `json:"network"`
	} `json:"facts"`
	Restart map[string]struct {
		Name string `json:"name"`
		Max  uint32 `json:"max"`
	} `json:"restart"`
}

// moreFacts is the part of a container's verbose status that its fields come from.
type moreFacts struct {
	PID    int  `json:"pid"`
	Paused bool `json:"paused"`
	Facts  struct {
		Args []string `json:"args"`
	} `json:"facts"`
	Config struct {
		Command []string               `json:"command"`
		Args    []string               `json:"args"`
		Dir     string                 `json:"working_dir"`
		Envs    []*runtimeapi.KeyValue `json:"envs"`
		Tty     bool                   `json:"tty"`
		Stdin   bool                   `json:"stdin"`
		Linux   struct {
			Security struct {
				Privileged bool `json:"privileged"`
				ReadOnly   bool `json:"readonly_rootfs"`
				Caps       struct {
					Add  []string `json:"add_capabilities"`
					Drop []string `json:"drop_capabilities"`
				} `json:"capabilities"`
			} `json:"security_context"`
		} `json:"linux"`
	} `json:"config"`
	Spec struct {
		Process struct {
			Cwd         string   `json:"cwd"`
			Env         []string `json:"env"`
			OOMScoreAdj int64    `json:"oomScoreAdj"`
		} `json:"process"`
	} `json:"runtimeSpec"`
	Health *struct {
		Status        string    `json:"status"`
		FailingStreak int       `json:"failingStreak"`
		ExitCode      int       `json:"exitCode"`
		Output        string    `json:"output"`
		Checked       time.Time `json:"checked"`
	} `json:"health"`
}

// stamp is a time as Docker prints it.
func stamp(nanoseconds int64) string {
	if nanoseconds <= 0 {
		return time.Time{}.Format(time.RFC3339Nano)
	}
	return time.Unix(0, nanoseconds).Format(time.RFC3339Nano)
}

// containerFields returns the fields of a container.
func containerFields(ctx context.Context, c *client.Client, x client.Container, st *runtimeapi.ContainerStatus, info json.RawMessage) (*inspectedContainer, error) {
	var own moreFacts
	if err := json.Unmarshal(info, &own); err != nil {
		return nil, fmt.Errorf("decode the status of container %s: %w", x.Id, err)
	}
	pod, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: x.PodSandboxId, Verbose: true})
	if err != nil {
		return nil, err
	}
	var of podFacts
	if err := decodeInfo(pod.Info, "pod sandbox "+x.PodSandboxId, &of); err != nil {
		return nil, err
	}
	options, err := api.Options(st.Annotations)
	if err != nil {
		return nil, err
	}
	out := &inspectedContainer{
		inspectedID: inspectedID{st.Id}, Name: x.Name(), Created: stamp(st.CreatedAt), Image: st.ImageId, Pod: x.PodSandboxId,
		ImageName: cmp.Or(st.Image.GetUserSpecifiedImage(), st.Image.GetImage()), RestartCount: st.Metadata.GetAttempt(), LogPath: st.LogPath, PidFile: options.PIDFile,
		State: stateFields(x, st, own), Mounts: mountFields(st, options),
		NetworkSettings: networkFields(pod.Status, of),
	}
	if len(own.Facts.Args) > 0 {
		out.Path, out.Args = own.Facts.Args[0], own.Facts.Args[1:]
	}
	if _, digest, found := strings.Cut(st.ImageRef, "@"); found {
		out.ImageDigest = digest
	}
	out.Config = configFields(st, own, options)
	out.Config.Hostname = of.Config.Hostname
	if out.Config.Env == nil { // what it ran with is gone
		if err := pastConfig(ctx, c, &out.Config, st.ImageId, own, options); err != nil {
			return nil, err
		}
	}
	out.HostConfig = hostFields(st, own, options, pod.Status, of)
	for _, m := range out.Mounts {
		out.HostConfig.Binds = append(out.HostConfig.Binds, cmp.Or(m.Name, m.Source)+":"+m.Destination)
	}
	out.Config.ExposedPorts = map[string]struct{}{}
	for port := range out.NetworkSettings.Ports {
		out.Config.ExposedPorts[port] = struct{}{}
	}
	return out, nil
}

func stateFields(x client.Container, st *runtimeapi.ContainerStatus, own moreFacts) inspectedState {
	s := inspectedState{
		Status: stateFor(x, st, own.Paused), Running: st.State == runtimeapi.ContainerState_CONTAINER_RUNNING, Paused: own.Paused,
		ExitCode: st.ExitCode, Error: st.Message, OOMKilled: st.Reason == "OOMKilled",
		StartedAt: stamp(st.StartedAt), FinishedAt: stamp(st.FinishedAt),
	}
	if s.Status == "created" {
		s.ExitCode, s.FinishedAt = 0, stamp(0)
	}
	if s.Running {
		s.Pid = own.PID
	}
	if h := own.Health; h != nil {
		s.Health = &inspectedHealth{Status: h.Status, FailingStreak: h.FailingStreak, Log: []map[string]any{}}
		if !h.Checked.IsZero() {
			s.Health.Log = append(s.Health.Log, map[string]any{"End": h.Checked.Format(time.RFC3339Nano), "ExitCode": h.ExitCode, "Output": h.Output})
		}
	}
	return s
}

func mountFields(st *runtimeapi.ContainerStatus, options *api.ContainerOptions) []inspectedMount {
	out := []inspectedMount{}
	for _, m := range st.Mounts {
		x := inspectedMount{Type: "bind", Source: m.HostPath, Destination: m.ContainerPath, RW: !m.Readonly, Mode: "rw"}
		if m.Readonly {
			x.Mode = "ro"
		}
		for _, v := range options.Volumes {
			if v.Path == m.ContainerPath && filepath.Base(m.HostPath) == v.Name {
				x.Type, x.Name = "volume", v.Name
			}
		}
		if image := m.GetImage().GetImage(); image != "" {
			x.Type, x.Source = "image", image
		}
		out = append(out, x)
	}
	for _, t := range options.Tmpfs {
		out = append(out, inspectedMount{Type: "tmpfs", Destination: t.Path, RW: true, Mode: strings.Join(t.Options, ",")})
	}
	return out
}

func configFields(st *runtimeapi.ContainerStatus, own moreFacts, options *api.ContainerOptions) inspectedConfig {
	c := inspectedConfig{
		Image: cmp.Or(st.Image.GetUserSpecifiedImage(), st.Image.GetImage()), WorkingDir: own.Spec.Process.Cwd, Env: own.Spec.Process.Env,
		Labels: maps.Clone(st.Labels), Annotations: maps.Clone(st.Annotations), Tty: own.Config.Tty, OpenStdin: own.Config.Stdin,
		Entrypoint: own.Config.Command, Cmd: own.Config.Args, StopTimeout: defaultGrace, StopSignal: strings.TrimPrefix(st.StopSignal.String(), "SIGNAL_"),
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	delete(c.Annotations, api.AnnotationOptions)
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		c.Cmd = own.Facts.Args
	}
	if u := st.GetUser().GetLinux(); u.GetUid() != 0 || u.GetGid() != 0 {
		c.User = fmt.Sprintf("%d:%d", u.GetUid(), u.GetGid())
	}
	if options.StopTimeout != nil {
		c.StopTimeout = *options.StopTimeout
	}
	return c
}

func hostFields(st *runtimeapi.ContainerStatus, own moreFacts, options *api.ContainerOptions, pod *runtimeapi.PodSandboxStatus, of podFacts) inspectedHost {
	r, security := st.GetResources().GetLinux(), own.Config.Linux.Security
	h := inspectedHost{
		AutoRemove: pod.Annotations[api.AnnotationWhenDone] == api.WhenDoneRemove, Privileged: security.Privileged, ReadonlyRootfs: security.ReadOnly,
		Init: options.Init, Binds: []string{}, PortBindings: portFields(of.Config), NetworkMode: "bridge", PidMode: "private",
		CapAdd: security.Caps.Add, CapDrop: security.Caps.Drop,
		Memory: r.GetMemoryLimitInBytes(), MemorySwap: r.GetMemorySwapLimitInBytes(), CpuShares: r.GetCpuShares(), CpuQuota: r.GetCpuQuota(), CpuPeriod: r.GetCpuPeriod(),
		CpusetCpus: r.GetCpusetCpus(), OomScoreAdj: own.Spec.Process.OOMScoreAdj,
	}
	if r.GetCpuPeriod() > 0 && r.GetCpuQuota() > 0 {
		h.NanoCpus = int64(float64(r.CpuQuota) / float64(r.CpuPeriod) * 1e9)
	}
	if n, err := strconv.ParseInt(r.GetUnified()["pids.max"], 10, 64); err == nil {
		h.PidsLimit = n
	}
	if n, err := strconv.ParseInt(pod.Annotations[api.AnnotationShmSize], 10, 64); err == nil {
		h.ShmSize = n
	}
	switch {
	case pod.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE:
		h.NetworkMode = "host"
	case pod.Annotations[api.AnnotationNetwork] == api.NetworkNone:
		h.NetworkMode = "none"
	}
	if pod.GetLinux().GetNamespaces().GetOptions().GetPid() == runtimeapi.NamespaceMode_NODE {
		h.PidMode = "host"
	}
	h.RestartPolicy.Name = "no"
	policy, found := of.Restart[st.Metadata.GetName()]
	if !found && len(of.Restart) == 1 { // it was renamed
		for _, policy = range of.Restart {
			found = true
		}
	}
	if found && policy.Name != "" {
		h.RestartPolicy.Name, h.RestartPolicy.MaximumRetryCount = policy.Name, policy.Max
	}
	return h
}

// askedNetworks returns the networks that a pod was made with; none is the default one.
func askedNetworks(annotations map[string]string) (asked api.PodNetworks) {
	_ = json.Unmarshal([]byte(annotations[api.AnnotationNetworks]), &asked) // the server has read it
	return asked
}

// networks returns the names of a pod's networks, as "run --network" takes them.
func (c sandboxConfig) networks(annotations map[string]string) []string {
	names := []string{}
	for _, n := range askedNetworks(annotations).Networks {
		names = append(names, n.Name)
	}
	switch {
	case len(names) > 0:
	case annotations[api.AnnotationNetwork] == api.NetworkNone:
		names = append(names, api.NetworkNone)
	case c.Linux.Security.Namespaces.Network == int32(runtimeapi.NamespaceMode_NODE):
		names = append(names, "host")
	default:
		names = append(names, api.DefaultNetwork)
	}
	return names
}

func portFields(cfg sandboxConfig) map[string][]inspectedPort {
	out := map[string][]inspectedPort{}
	for _, m := range cfg.PortMappings {
		key := fmt.Sprintf("%d/%s", m.ContainerPort, strings.ToLower(runtimeapi.Protocol(m.Protocol).String()))
		if m.HostPort != 0 {
			out[key] = append(out[key], inspectedPort{cmp.Or(m.HostIP, "0.0.0.0"), strconv.Itoa(int(m.HostPort))})
		} else if out[key] == nil {
			out[key] = []inspectedPort{}
		}
	}
	return out
}

func networkFields(pod *runtimeapi.PodSandboxStatus, of podFacts) inspectedNetwork {
	n := inspectedNetwork{Ports: portFields(of.Config), Networks: map[string]inspectedAttachment{}, MacAddress: of.Facts.Network.MAC, SandboxKey: of.Facts.Pins.Net}
	ips := []string{}
	if ip := pod.GetNetwork().GetIp(); ip != "" {
		ips = append(ips, ip)
	}
	for _, ip := range pod.GetNetwork().GetAdditionalIps() {
		ips = append(ips, ip.Ip)
	}
	for _, ip := range ips {
		if strings.Contains(ip, ":") {
			n.GlobalIPv6Address = cmp.Or(n.GlobalIPv6Address, ip)
		} else {
			n.IPAddress = cmp.Or(n.IPAddress, ip)
		}
	}
	for _, gateway := range of.Facts.Network.Gateways {
		if !strings.Contains(gateway, ":") {
			n.Gateway = cmp.Or(n.Gateway, gateway)
		}
	}
	if len(ips) == 0 {
		return n
	}
	asked := askedNetworks(pod.Annotations)
	first := inspectedAttachment{n.IPAddress, n.Gateway, n.MacAddress, n.GlobalIPv6Address, []string{}}
	if len(asked.Networks) == 0 && pod.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_POD {
		asked.Networks = []api.PodNetwork{{Name: api.DefaultNetwork}}
	}
	for i, network := range asked.Networks {
		x := inspectedAttachment{}
		if i == 0 {
			x = first
		}
		x.Aliases = append([]string{}, network.Aliases...)
		n.Networks[network.Name] = x
	}
	return n
}

type inspectedImage struct {
	inspectedID
	Digest       string
	RepoTags     []string
	RepoDigests  []string
	Created      string
	Size         uint64
	Architecture string
	Os           string
	Author       string
	Comment      string
	User         string
	Labels       map[string]string
	Config       imageConfig
	History      []imageStep
	RootFS       imageLayers
}

type imageLayers struct {
	Type   string
	Layers []string
}

type imageConfig struct {
	User, WorkingDir, StopSignal string              `json:",omitempty"`
	Env, Cmd, Entrypoint         []string            `json:",omitempty"`
	Labels                       map[string]string   `json:",omitempty"`
	ExposedPorts, Volumes        map[string]struct{} `json:",omitempty"`
}

// imageFields returns the fields of an image.
func imageFields(i *runtimeapi.Image, info json.RawMessage) (*inspectedImage, error) {
	var v verboseImage
	if err := json.Unmarshal(info, &v); err != nil {
		return nil, fmt.Errorf("decode the status of image %s: %w", i.Id, err)
	}
	out := &inspectedImage{
		inspectedID: inspectedID{i.Id}, Digest: v.Digest, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: i.Size,
		Created: v.Created.Format(time.RFC3339Nano), Architecture: v.Architecture, Os: v.OS, Labels: v.Labels, History: v.History,
		Author: v.Author, RootFS: imageLayers{"layers", v.Layers},
	}
	if n := len(v.History); n > 0 {
		out.Comment = v.History[n-1].Comment
	}
	if err := json.Unmarshal(v.ImageSpec.Config, &out.Config); err != nil {
		return nil, fmt.Errorf("decode the configuration of image %s: %w", i.Id, err)
	}
	out.User = out.Config.User
	return out, nil
}

type inspectedPod struct {
	inspectedID
	Name       string
	Namespace  string
	Created    string
	State      string
	Hostname   string
	Labels     map[string]string
	IPAddress  string
	Containers []map[string]string
}

// podFields returns the fields of a pod.
func podFields(ctx context.Context, c *client.Client, st *runtimeapi.PodSandboxStatus, info json.RawMessage) (*inspectedPod, error) {
	var of podFacts
	if err := json.Unmarshal(info, &of); err != nil {
		return nil, fmt.Errorf("decode the status of pod sandbox %s: %w", st.Id, err)
	}
	list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: st.Id}})
	if err != nil {
		return nil, err
	}
	out := &inspectedPod{
		inspectedID: inspectedID{st.Id}, Name: st.Metadata.GetName(), Namespace: st.Metadata.GetNamespace(), Created: stamp(st.CreatedAt), State: "Exited",
		Hostname: of.Config.Hostname, Labels: st.Labels, IPAddress: st.GetNetwork().GetIp(), Containers: []map[string]string{},
	}
	if st.State == runtimeapi.PodSandboxState_SANDBOX_READY {
		out.State = "Running"
	}
	for _, x := range list.Containers {
		out.Containers = append(out.Containers, map[string]string{"Id": x.Id, "Name": x.Metadata.GetName(), "State": stateName(x.State)})
	}
	return out, nil
}

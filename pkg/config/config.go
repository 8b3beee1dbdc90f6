// Package config reads subpod's configuration: the embedded default
// (configs/subpod.toml), then a file, its drop-ins, and overrides from the
// command line. Unknown keys and bad values are refused with file, line and key.
//
//	cfg, err := config.Load("", nil)     // the standard places
//	...
//	err = cfg.Resolve(os.Getenv)         // ~ and $XDG_… become absolute paths
package config

import (
	"net/netip"
	"slices"
)

// Config is the whole configuration. Its fields follow configs/subpod.toml,
// which explains each key and holds its default; a test ties the two together.
type Config struct {
	Daemon    Daemon    `toml:"daemon"`
	Node      Node      `toml:"node"`
	Storage   Storage   `toml:"storage"`
	Images    Images    `toml:"images"`
	Network   Network   `toml:"network"`
	Runtime   Runtime   `toml:"runtime"`
	Streaming Streaming `toml:"streaming"`
	Metrics   Metrics   `toml:"metrics"`

	// origins says which file and line set a key last: for problems that are
	// found only after decoding.
	origins origins
}

// The tag `path` says that Resolve expands a field: "dir" and "file" must then be
// absolute (an empty one stays empty), a "command" may also be a bare name, to be
// looked up in $PATH.

// Daemon is section [daemon].
type Daemon struct {
	Socket    string `toml:"socket" path:"file"`
	DataDir   string `toml:"data_dir" path:"dir"`
	RunDir    string `toml:"run_dir" path:"dir"`
	LogLevel  string `toml:"log_level"`  // debug, info, warn, error
	LogFormat string `toml:"log_format"` // text, json
}

// Node is section [node].
type Node struct {
	Uplink              string   `toml:"uplink"` // rootless.Uplinks lists them
	UplinkFallback      []string `toml:"uplink_fallback"`
	UplinkIPv6          bool     `toml:"uplink_ipv6"`
	IDMapping           string   `toml:"id_mapping"` // auto, subordinate, single
	MTU                 int      `toml:"mtu"`        // bytes
	Slirp4netnsPath     string   `toml:"slirp4netns_path" path:"command"`
	PastaPath           string   `toml:"pasta_path" path:"command"`
	DisableHostLoopback bool     `toml:"disable_host_loopback"`
	CopyUp              []string `toml:"copy_up" path:"dir"` // empty: rootless.DefaultCopyUp
	Binds               []Bind   `toml:"binds"`
	View                string   `toml:"view"` // rootless.Views lists them
	HostPaths           []string `toml:"host_paths" path:"file"`
}

// Storage is section [storage].
type Storage struct {
	Driver                string   `toml:"driver"`    // fuse-overlayfs, native, auto, vfs
	AllowVFS              bool     `toml:"allow_vfs"` // of auto
	MountProgram          string   `toml:"mount_program" path:"command"`
	AdditionalImageStores []string `toml:"additional_image_stores" path:"dir"`
	IgnoreChownErrors     bool     `toml:"ignore_chown_errors"`
}

// Images is section [images].
type Images struct {
	RegistriesConf       string   `toml:"registries_conf" path:"file"`
	Policy               string   `toml:"policy" path:"file"`
	AuthFile             string   `toml:"auth_file" path:"file"`
	CertsDir             string   `toml:"certs_dir" path:"dir"`
	Pinned               []string `toml:"pinned"`
	MaxParallelDownloads int      `toml:"max_parallel_downloads"`
	PullTimeout          Duration `toml:"pull_timeout"` // without progress
	Limits               Limits   `toml:"limits"`
}

// Limits is table [images.limits]: what an image may choose.
type Limits struct {
	Manifest Size `toml:"manifest"`
	Config   Size `toml:"config"`
	User     int  `toml:"user"` // bytes
	Env      Size `toml:"env"`
	Labels   Size `toml:"labels"`
	Layers   int  `toml:"layers"`
	Entries  int  `toml:"entries"` // of all layers
	Names    int  `toml:"names"`   // of one archive
	Size     Size `toml:"size"`    // unpacked
	Memory   Size `toml:"memory"`  // of each process that unpacks
}

// Network is section [network].
type Network struct {
	Backend     string         `toml:"backend"` // auto, bridge, cni
	Bridge      string         `toml:"bridge"`
	Subnets     []netip.Prefix `toml:"subnets"`
	MTU         int            `toml:"mtu"` // bytes
	CNIConfDirs []string       `toml:"cni_conf_dirs" path:"dir"`
	CNIBinDirs  []string       `toml:"cni_bin_dirs" path:"dir"`
	Isolate     bool           `toml:"isolate"`
	Expose      []string       `toml:"expose"`       // "tcp:8080", "udp:53", "auto", "services"
	IngressRate Rate           `toml:"ingress_rate"` // bits per second
	EgressRate  Rate           `toml:"egress_rate"`  // bits per second

	WaitForPodCIDR bool `toml:"wait_for_pod_cidr"`

	SwitchedEgress string         `toml:"switched_egress"` // asked, always, never
	SwitchedLocal  []netip.Prefix `toml:"switched_local"`
}

// HasIPv6 reports whether pods have IPv6 addresses, unless a kubelet or CNI plugins decide that.
func (n Network) HasIPv6() bool {
	return len(n.Subnets) == 0 || slices.ContainsFunc(n.Subnets, func(s netip.Prefix) bool { return s.Addr().Is6() })
}

// Runtime is section [runtime].
type Runtime struct {
	DefaultHandler string             `toml:"default_handler"`
	ConmonPath     string             `toml:"conmon_path" path:"command"`
	Monitor        string             `toml:"monitor"`        // conmon, subpod
	CgroupManager  string             `toml:"cgroup_manager"` // auto, cgroupfs, systemd, disabled
	SeccompProfile string             `toml:"seccomp_profile" path:"file"`
	NRI            bool               `toml:"nri"`
	CDISpecDirs    []string           `toml:"cdi_spec_dirs" path:"dir"`
	Handlers       map[string]Handler `toml:"handlers"`
}

// Handler is one table [runtime.handlers.NAME]: an OCI runtime.
type Handler struct {
	Path string   `toml:"path" path:"command"`
	Args []string `toml:"args"` // before the runtime's own command
}

// Streaming is section [streaming].
type Streaming struct {
	Address     string   `toml:"address"` // a loopback address
	Port        int      `toml:"port"`    // 0: any free port
	IdleTimeout Duration `toml:"idle_timeout"`
}

// Metrics is section [metrics].
type Metrics struct {
	Listen string `toml:"listen"` // off, unix, or ADDRESS:PORT on loopback
}

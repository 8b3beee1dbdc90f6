package config

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Validate checks every value that its type alone does not rule out, without
// looking at the machine. It is pure and returns all problems, in the order of
// the sections.
func (c *Config) Validate() []Problem {
	v := validator{origins: c.origins}
	v.daemon(c.Daemon)
	v.node(c.Node)
	v.storage(c.Storage, c.Images)
	v.network(c.Network)
	if i := c.uplinkOverlaps6(); i >= 0 && c.Node.UplinkIPv6 {
		v.add("network.subnets", "%s overlaps %s, which belongs to the uplink; choose another, or set node.uplink_ipv6 = false", c.Network.Subnets[i], uplinkSubnet6)
	}
	v.runtime(c.Runtime)
	v.streaming(c.Streaming)
	v.metrics(c.Metrics)
	return v.problems
}

type validator struct {
	origins  origins
	problems []Problem
}

func (v *validator) add(key, format string, args ...any) {
	v.problems = append(v.problems, v.origins.problem(key, format, args...))
}

func (v *validator) oneOf(key, value string, known ...string) {
	if !slices.Contains(known, value) {
		v.add(key, "%q is not one of %s", value, strings.Join(known, ", "))
	}
}

func (v *validator) within(key string, value, low, high int) {
	if value < low || value > high {
		v.add(key, "%d is not between %d and %d", value, low, high)
	}
}

func (v *validator) nonEmpty(key, value string) {
	if value == "" {
		v.add(key, "must not be empty")
	}
}

func (v *validator) noneEmpty(key string, values []string) {
	if slices.Contains(values, "") {
		v.add(key, "holds an empty string")
	}
}

func (v *validator) daemon(d Daemon) {
	v.nonEmpty("daemon.socket", d.Socket)
	v.nonEmpty("daemon.data_dir", d.DataDir)
	v.nonEmpty("daemon.run_dir", d.RunDir)
	v.oneOf("daemon.log_level", d.LogLevel, "debug", "info", "warn", "error")
	v.oneOf("daemon.log_format", d.LogFormat, "text", "json")
}

func (v *validator) node(n Node) {
	// As rootless.Uplinks, which also refuses others: here with file and line.
	v.oneOf("node.uplink", n.Uplink, "auto", "slirp4netns", "pasta", "gvisor-tap-vsock", "none", "host")
	v.oneOf("node.id_mapping", n.IDMapping, "auto", "subordinate", "single")
	v.noneEmpty("node.uplink_fallback", n.UplinkFallback)
	v.mtu("node.mtu", n.MTU)
	v.nonEmpty("node.slirp4netns_path", n.Slirp4netnsPath)
	v.nonEmpty("node.pasta_path", n.PastaPath)
	v.noneEmpty("node.copy_up", n.CopyUp)
	v.oneOf("node.view", n.View, "full", "minimal", "auto")
	v.noneEmpty("node.host_paths", n.HostPaths)
}

// mtu: RFC 8200 asks for at least 1280, and a tap device takes at most 65521.
func (v *validator) mtu(key string, mtu int) { v.within(key, mtu, 1280, 65521) }

func (v *validator) storage(s Storage, i Images) {
	v.oneOf("storage.driver", s.Driver, "fuse-overlayfs", "native", "auto", "vfs")
	v.noneEmpty("storage.additional_image_stores", s.AdditionalImageStores)
	v.noneEmpty("images.pinned", i.Pinned)
	v.within("images.max_parallel_downloads", i.MaxParallelDownloads, 1, 64)
	v.atLeast("images.pull_timeout", i.PullTimeout, time.Second)
	v.limits(i.Limits)
}

// limits: with less, the images that everybody uses could not be pulled. More than the
// libraries read themselves is of no use.
func (v *validator) limits(l Limits) {
	v.sizeWithin("images.limits.manifest", l.Manifest, 64<<10, 4<<20)
	v.sizeWithin("images.limits.config", l.Config, 64<<10, 4<<20)
	v.within("images.limits.user", l.User, 32, 4<<10)
	v.sizeWithin("images.limits.env", l.Env, 4<<10, 4<<20)
	v.sizeWithin("images.limits.labels", l.Labels, 4<<10, 4<<20)
	v.within("images.limits.layers", l.Layers, 1, 500) // as many as the kernel stacks
	v.within("images.limits.entries", l.Entries, 1000, 1e9)
	v.within("images.limits.names", l.Names, 1, 10000)
	v.sizeWithin("images.limits.size", l.Size, 1<<20, 1<<60)
	v.sizeWithin("images.limits.memory", l.Memory, 256<<20, 1<<50)
}

func (v *validator) sizeWithin(key string, s Size, low, high int64) {
	if s.Bytes < low || s.Bytes > high {
		v.add(key, "%d bytes are not between %d and %d", s.Bytes, low, high)
	}
}

func (v *validator) atLeast(key string, d Duration, least time.Duration) {
	if d.Duration < least {
		v.add(key, "%s is less than %s", d, least)
	}
}

// uplinkSubnet is where slirp4netns and pasta's defaults put the node's own
// address, its gateway and its DNS forwarder (slirp4netns(1), --cidr).
var (
	uplinkSubnet  = netip.MustParsePrefix("10.0.2.0/24")
	uplinkSubnet6 = netip.MustParsePrefix("fd00::/64") // (--enable-ipv6)
)

// uplinkOverlaps6 returns the index of a subnet of pods that the uplink has with uplink_ipv6, -1
// for none.
func (c *Config) uplinkOverlaps6() int {
	return slices.IndexFunc(c.Network.Subnets, uplinkSubnet6.Overlaps)
}

func (v *validator) network(n Network) {
	v.oneOf("network.backend", n.Backend, "auto", "bridge", "cni")
	v.oneOf("network.switched_egress", n.SwitchedEgress, "asked", "always", "never")
	// dev_valid_name in Linux' net/core/dev.c; IFNAMSIZ is 16 with the final 0.
	if n.Bridge == "" || len(n.Bridge) > 15 || n.Bridge == "." || n.Bridge == ".." ||
		strings.ContainsFunc(n.Bridge, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r > '~' }) {
		v.add("network.bridge", "%q is not an interface name of 1 to 15 printable characters without / and :", n.Bridge)
	}
	v.mtu("network.mtu", n.MTU)
	v.subnets(n.Subnets)
	v.noneEmpty("network.cni_conf_dirs", n.CNIConfDirs)
	v.noneEmpty("network.cni_bin_dirs", n.CNIBinDirs)
	for _, e := range n.Expose {
		if e == "auto" || e == "services" {
			continue
		}
		proto, port, _ := strings.Cut(e, ":")
		if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 || proto != "tcp" && proto != "udp" {
			v.add("network.expose", `%q is neither "auto", "services" nor a port such as "tcp:8080"`, e)
		}
	}
	if n.Backend == "cni" && len(n.CNIConfDirs) == 0 {
		v.add("network.cni_conf_dirs", `must name a directory when network.backend is "cni"`)
	}
	if n.Backend == "cni" && n.Isolate {
		v.add("network.isolate", "only the built-in bridge can isolate pods")
	}
	if n.Backend == "cni" && n.WaitForPodCIDR {
		v.add("network.wait_for_pod_cidr", "only the built-in bridge waits for it: CNI plugins have subnets of their own")
	}
}

func (v *validator) subnets(subnets []netip.Prefix) {
	const key = "network.subnets"
	if len(subnets) == 0 {
		v.add(key, "must hold at least one subnet")
	}
	families := map[bool]int{}
	for _, s := range subnets {
		switch {
		case !s.IsValid() || s.Addr().Is4In6():
			v.add(key, `holds an entry that is not a subnet such as "10.88.0.0/16"`)
			continue
		case s != s.Masked():
			v.add(key, "%s has bits set after its prefix; did you mean %s?", s, s.Masked())
		case s.Addr().BitLen()-s.Bits() < 3:
			v.add(key, "%s leaves no room for pods: at least 8 addresses are needed", s)
		case s.Overlaps(uplinkSubnet):
			v.add(key, "%s overlaps %s, which belongs to the uplink", s, uplinkSubnet)
		case s.Addr().IsLoopback() || s.Addr().IsMulticast() || s.Addr().IsLinkLocalUnicast() || s.Addr().IsUnspecified():
			v.add(key, "%s is not a range that pods can have addresses from", s)
		}
		families[s.Addr().Is4()]++
	}
	if families[true] > 1 || families[false] > 1 {
		v.add(key, "holds more than one subnet of an address family")
	}
}

// isHandlerName: what a RuntimeClass may name: a DNS label (handler in
// k8s.io/api/node/v1, RuntimeClass).
func isHandlerName(s string) bool {
	return len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && strings.Trim(s, "-") == s && s != ""
}

func (v *validator) runtime(r Runtime) {
	v.nonEmpty("runtime.conmon_path", r.ConmonPath)
	v.oneOf("runtime.monitor", r.Monitor, "conmon", "subpod")
	v.oneOf("runtime.cgroup_manager", r.CgroupManager, "auto", "cgroupfs", "systemd", "disabled")
	v.noneEmpty("runtime.cdi_spec_dirs", r.CDISpecDirs)
	names := slices.Sorted(maps.Keys(r.Handlers))
	for _, name := range names {
		key := "runtime.handlers." + name
		if !isHandlerName(name) {
			v.add(key, "%q is not a lower-case DNS label, as a RuntimeClass asks for", name)
		}
		v.nonEmpty(key+".path", r.Handlers[name].Path)
	}
	if _, ok := r.Handlers[r.DefaultHandler]; !ok {
		v.add("runtime.default_handler", "%q is not one of the handlers %s", r.DefaultHandler, strings.Join(names, ", "))
	}
}

func (v *validator) streaming(s Streaming) {
	// Whoever gets at a URL may run commands, so it never leaves the machine.
	if a, err := netip.ParseAddr(s.Address); err != nil || !a.IsLoopback() || a.Zone() != "" {
		v.add("streaming.address", `%q is not a loopback address such as "127.0.0.1"`, s.Address)
	}
	v.within("streaming.port", s.Port, 0, 65535)
	v.atLeast("streaming.idle_timeout", s.IdleTimeout, time.Second)
}

// metrics: all users of the host can read what listens on its loopback, and others never.
func (v *validator) metrics(m Metrics) {
	if m.Listen == "off" || m.Listen == "unix" {
		return
	}
	a, err := netip.ParseAddrPort(m.Listen)
	if err != nil || !a.Addr().IsLoopback() || a.Addr().Zone() != "" || a.Port() == 0 {
		v.add("metrics.listen", `%q is not "off", "unix", or a loopback address with a port such as "127.0.0.1:9464"`, m.Listen)
	}
}

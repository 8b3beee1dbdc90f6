package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
	"github.com/subpod/subpod/tests/nstest"
)

func TestMain(m *testing.M) {
	netns.Dispatch()
	if plugin := pluginParts[os.Args[len(os.Args)-1]]; plugin != nil {
		if err := plugin(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(nstest.Main(m, nstest.Options{Net: true, PID: true, IPC: true, UTS: true, IDs: 65536}))
}

// plugins are Debian's containernetworking-plugins, and where others put them.
var plugins = []string{"/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"}

type obj = map[string]any

// chain is the network that most clusters have: a bridge with addresses by
// host-local, then portmap, bandwidth and firewall.
func chain(w *nettest.World, subnets []netip.Prefix) obj {
	var ranges [][]obj
	var routes []obj
	for _, s := range subnets {
		ranges = append(ranges, []obj{{"subnet": s.String()}})
		routes = append(routes, obj{"dst": netip.PrefixFrom(unspecified(s.Addr()), 0).String()})
	}
	return obj{"cniVersion": "1.0.0", "name": "pods", "plugins": []obj{
		{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 65520,
			"ipam": obj{"type": "host-local", "dataDir": filepath.Join(w.Dir, "host-local"), "ranges": ranges, "routes": routes}},
		{"type": "portmap", "capabilities": obj{"portMappings": true}, "snat": true},
		{"type": "bandwidth", "capabilities": obj{"bandwidth": true}},
		{"type": "firewall"},
	}}
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// configure writes a configuration file of the world.
func configure(t testing.TB, w *nettest.World, name string, conf any) string {
	t.Helper()
	data, err := json.Marshal(conf)
	nettest.Must(t, err)
	return write(t, w, name, string(data))
}

func write(t testing.TB, w *nettest.World, name, text string) string {
	t.Helper()
	path := filepath.Join(w.Dir, "net.d", name)
	nettest.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	nettest.Must(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// open makes the network on what the world has of configuration and state.
func open(t testing.TB, w *nettest.World, change ...func(*Options)) *Network {
	t.Helper()
	o := Options{
		Thread: w.Thread, StateDir: filepath.Join(w.Dir, "state"), Timeout: 20 * time.Second,
		ConfDirs: []string{filepath.Join(w.Dir, "none"), filepath.Join(w.Dir, "net.d")}, BinDirs: plugins,
	}
	for _, f := range change {
		f(&o)
	}
	n, err := New(o)
	nettest.Must(t, err)
	return n
}

func TestConformance(t *testing.T) {
	nettest.Suite(t, func(t testing.TB, o nettest.Options) netns.Network {
		configure(t, o.World, "10-pods.conflist", chain(o.World, o.Subnets))
		return open(t, o.World, func(c *Options) { c.Ports = o.Ports })
	})
}

// script writes a plugin of our own: a shell script.
func script(t testing.TB, w *nettest.World, name, text string) string {
	t.Helper()
	dir := filepath.Join(w.Dir, "bin")
	nettest.Must(t, os.MkdirAll(dir, 0o755))
	head := "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && { echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}'; exit; }\n"
	nettest.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(head+text), 0o755))
	return dir
}

// pass makes a plugin in a chain that leaves everything as it is, after text.
func pass(t testing.TB, text string) string {
	return fmt.Sprintf("%s\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n%s", text, part(t, "plugin-pass"))
}

// part is the line of a script that goes on as a part of this program.
func part(t testing.TB, name string) string {
	t.Helper()
	exe, err := os.Executable()
	nettest.Must(t, err)
	return fmt.Sprintf("exec '%s' %s\n", exe, name)
}

// pluginParts are the plugins that this program is for the scripts.
var pluginParts = map[string]func() error{"plugin-pass": pluginPass, "plugin-flannel": pluginFlannel}

func pluginPass() error {
	var conf struct{ PrevResult json.RawMessage }
	if err := json.NewDecoder(os.Stdin).Decode(&conf); err != nil {
		return err
	}
	_, err := os.Stdout.Write(conf.PrevResult)
	return err
}

// pluginFlannel does what flannel's plugin does, with the network of its
// /run/flannel/subnet.env given.
func pluginFlannel() error {
	var conf map[string]any
	if err := json.NewDecoder(os.Stdin).Decode(&conf); err != nil {
		return err
	}
	bridge := conf["delegate"].(obj)
	for _, key := range []string{"name", "cniVersion", "prevResult", "runtimeConfig"} {
		if v, ok := conf[key]; ok {
			bridge[key] = v
		}
	}
	maps.Copy(bridge, obj{"type": "bridge", "mtu": 1450, "ipMasq": false, "isGateway": true,
		"ipam": obj{"type": "host-local", "dataDir": os.Getenv("FLANNEL_DATA"),
			"ranges": [][]obj{{{"subnet": "10.244.1.0/24"}}}, "routes": []obj{{"dst": "10.244.0.0/16"}}}})
	text, err := json.Marshal(bridge)
	if err != nil {
		return err
	}
	for _, dir := range filepath.SplitList(os.Getenv("CNI_PATH")) {
		cmd := exec.Command(filepath.Join(dir, "bridge"))
		if _, err := os.Stat(cmd.Path); err != nil {
			continue
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), os.Stdout, os.Stderr
		return cmd.Run()
	}
	return errors.New("no plugin bridge in CNI_PATH")
}

package netns

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/subpod/subpod/pkg/idmap"
)

// TestMappedGroups: the ends of a range are mapped, and in order on the host.
func TestMappedGroups(t *testing.T) {
	const all = "0 2147483647"
	for _, c := range []struct{ name, maps, value, want string }{
		{"rootless", "0 1000 1\n1 100000 65536", all, "0 65536"},
		{"a part", "0 1000 1\n1 100000 65536", "10 20", "10 20"},
		{"from outside", "0 1000 1\n1 100000 65536", "70000 80000", "70000 80000"},
		{"one ID", "0 1000 1", all, "0 0"},
		{"root's", "0 0 4294967295", all, all},
		{"the user's ID is above its range", "0 200000 1\n1 100000 65536", all, "1 65536"},
		{"a gap", "0 1000 1\n1 100000 10\n50 100049 10", "20 2147483647", "50 59"},
		{"nobody", "0 1000 1", "1 0", "1 0"},
		{"no range", "0 1000 1", "many", "many"},
		{"no map", "", all, all},
	} {
		file := filepath.Join(t.TempDir(), "gid_map")
		if err := os.WriteFile(file, []byte(c.maps), 0o600); err != nil {
			t.Fatal(err)
		}
		maps, err := idmap.Read(file)
		if err != nil && c.maps != "" {
			t.Fatal(err)
		}
		if got := mappedGroups(c.value, maps); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	nested := []idmap.Map{{Container: 0, Host: 65536, Size: 1000}}
	for value, want := range map[string]string{all: "65536 66535", "5 7": "65541 65543", "1 0": "1 0", "2000 3000": "2000 3000"} {
		if got := outerGroups(value, nested); got != want {
			t.Errorf("nested %q: %q, want %q", value, got, want)
		}
	}
}

// TestDefaultSysctls: a pod's own sysctls win in either notation, what the kernel does not
// have is left out, and the range that everybody writes is cut to the groups there are.
func TestDefaultSysctls(t *testing.T) {
	defaults := map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.no_such_thing": "1",
	}
	const ports, groups = "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/ping_group_range"
	nested := &IDMaps{UIDs: []idmap.Map{{Container: 0, Host: 1000, Size: 2000}}, GIDs: []idmap.Map{{Container: 0, Host: 1000, Size: 2000}}}
	for name, c := range map[string]struct {
		sysctls       map[string]string
		userNS        *IDMaps
		ports, groups string
	}{
		"none":           {nil, nil, "0", "0 65535"},
		"slashes":        {map[string]string{"net/ipv4/ip_unprivileged_port_start": "80", "net/ipv4/ping_group_range": "1 0"}, nil, "80", "1 0"},
		"everybody":      {map[string]string{"net.ipv4.ping_group_range": "0 2147483647"}, nil, "0", "0 65535"},
		"nested, none":   {nil, nested, "0", "0 65535"},
		"nested, groups": {map[string]string{"net.ipv4.ping_group_range": "5 2147483647"}, nested, "0", "1005 2999"},
	} {
		dir := filepath.Join(t.TempDir(), "pod")
		pins, err := Pin(context.Background(), PinSpec{Dir: dir, Net: true, Sysctls: c.sysctls, DefaultSysctls: defaults, UserNS: c.userNS})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		inPins(t, Pins{Net: pins.Net}, func() error {
			if c.groups == "1 0" {
				return expectFile(ports, c.ports)
			}
			return errors.Join(expectFile(ports, c.ports), expectFile(groups, c.groups))
		})
		mustUnpin(t, dir)
	}
}

// TestGroupMaps: the maps are read once, but a failure to read them is not for ever.
func TestGroupMaps(t *testing.T) {
	groups := groupMaps{file: filepath.Join(t.TempDir(), "gid_map")}
	if maps, err := groups.read(); err == nil {
		t.Errorf("no file: %v", maps)
	}
	if err := os.WriteFile(groups.file, []byte("0 1000 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"a file", "it is gone"} {
		if maps, err := groups.read(); err != nil || len(maps) != 1 {
			t.Errorf("%s: %v, %v", when, maps, err)
		}
		_ = os.Remove(groups.file)
	}
}

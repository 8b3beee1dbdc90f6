package rootless

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUplinkIPv6: an uplink leads outside by IPv6 where it is asked to and can, else why not.
func TestUplinkIPv6(t *testing.T) {
	holes := func(string) string { return "known holes" }
	for _, c := range []struct {
		name   string
		config Config
		kernel bool
		reason string // "" for IPv6
	}{
		{"slirp4netns", Config{Uplink: UplinkSlirp, IPv6: true}, true, ""},
		{"pasta", Config{Uplink: UplinkPasta, IPv6: true}, true, ""},
		{"gvisor", Config{Uplink: UplinkGvisor, IPv6: true}, true, "has no IPv6"},
		{"not asked", Config{Uplink: UplinkSlirp}, true, "uplink_ipv6 is false"},
		{"no kernel", Config{Uplink: UplinkPasta, IPv6: true}, false, "kernel"},
		{"holes", Config{Uplink: UplinkSlirp, IPv6: true, UplinkFault: holes}, true, "known holes"},
		{"offline, and pasta is passed over", Config{Uplink: UplinkPasta, UplinkFallback: []string{UplinkSlirp}, IPv6: true}, true, ""},
	} {
		h := fakeHost(t)
		if c.kernel {
			h.put(t, "/proc/net/if_inet6", "", 0o444)
		}
		h.put(t, "/bin/slirp4netns", "", 0o755)
		h.put(t, "/bin/pasta", "", 0o755)
		c.config.SlirpBinary, c.config.PastaBinary = "slirp4netns", "pasta"
		got := c.config.resolveUplink(h)
		if got.IPv6 != (c.reason == "") || got.IPv6 != (got.NoIPv6 == "") || !strings.Contains(got.NoIPv6, c.reason) {
			t.Errorf("%s: IPv6 %v, because %q; want %q", c.name, got.IPv6, got.NoIPv6, c.reason)
		}
	}
}

// TestPastaOffline: pasta is passed over where it finds no interface when it starts.
func TestPastaOffline(t *testing.T) {
	for _, c := range []struct{ no4, no6, ipv6, passed bool }{
		{false, true, true, false}, {true, false, true, false}, {true, false, false, true}, {true, true, true, true},
	} {
		h := fakeHost(t)
		h.put(t, "/bin/pasta", "", 0o755)
		h.put(t, "/bin/slirp4netns", "", 0o755)
		h.NoIPv4, h.NoIPv6 = c.no4, c.no6
		got := Config{Uplink: UplinkPasta, UplinkFallback: []string{UplinkSlirp}, IPv6: c.ipv6, SlirpBinary: "slirp4netns", PastaBinary: "pasta"}.fallBack(h)
		if (got.Uplink != UplinkPasta) != c.passed {
			t.Errorf("%+v: %s, because %q", c, got.Uplink, got.UplinkReason)
		}
	}
}

// TestServersOfNow: the node's resolv.conf names what the host's has, and is left alone
// while it does.
func TestServersOfNow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := writeServers(file, []string{"10.0.2.3"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Fatal("the file is made before the node has made it")
	}
	var before os.FileInfo
	for _, servers := range [][]string{{"10.0.2.3"}, {"fd00::3"}, {"10.0.2.3", "fd00::3"}, {"10.0.2.3", "fd00::3"}} {
		if before == nil {
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeServers(file, servers); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil || string(text) != "nameserver "+strings.Join(servers, "\nnameserver ")+"\n" {
			t.Errorf("%q, %v; want %q", text, err, servers)
		}
		now, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(servers) == 2 && before != nil && before.Size() == now.Size() && !os.SameFile(before, now) {
			t.Error("it is written again without a change")
		}
		before = now
	}
}

// TestFallBack: which uplink is taken when programs are missing or have faults, and why.
func TestFallBack(t *testing.T) {
	const hole = "libslirp 4.4.0 has known holes"
	order := []string{UplinkPasta, UplinkGvisor}
	for _, c := range []struct {
		name     string
		programs string
		uplink   string
		faults   map[string]string
		want     string
		reason   string
	}{
		{"all is well", "slirp4netns pasta", UplinkSlirp, nil, UplinkSlirp, ""},
		{"missing", "pasta", UplinkSlirp, nil, UplinkPasta, "slirp4netns is not installed; pasta is next"},
		{"a fault, and another is there", "slirp4netns pasta", UplinkSlirp, map[string]string{UplinkSlirp: hole}, UplinkPasta, hole + "; pasta is next"},
		{"a fault, and the next is missing", "slirp4netns subpod-node-gvisor", UplinkSlirp, map[string]string{UplinkSlirp: hole}, UplinkGvisor, hole + "; gvisor-tap-vsock is next"},
		{"a fault, and no other is there", "slirp4netns", UplinkSlirp, map[string]string{UplinkSlirp: hole}, UplinkSlirp, hole + "; no other"},
		{"faults everywhere", "slirp4netns pasta", UplinkSlirp, map[string]string{UplinkSlirp: hole, UplinkPasta: "bad"}, UplinkSlirp, hole + "; no other"},
		{"missing, and the next has a fault", "pasta", UplinkSlirp, map[string]string{UplinkPasta: "bad"}, UplinkPasta, "slirp4netns is not installed; pasta is next"},
		{"missing, the next has a fault, one more is there", "pasta subpod-node-gvisor", UplinkSlirp, map[string]string{UplinkPasta: "bad"}, UplinkGvisor, "slirp4netns is not installed; gvisor-tap-vsock is next"},
		{"another's fault", "slirp4netns pasta", UplinkPasta, map[string]string{UplinkSlirp: hole}, UplinkPasta, ""},
		{"none at all", "", UplinkSlirp, nil, UplinkSlirp, ""},
	} {
		h := fakeHost(t)
		dir := h.File("/programs")
		h.Path, h.Executable = dir, filepath.Join(dir, "subpod")
		for name := range strings.FieldsSeq(c.programs) {
			h.put(t, "/programs/"+name, "", 0o755)
		}
		// Found below the host's root, which a name without it would not be.
		h.Root = ""
		got := Config{Uplink: c.uplink, UplinkFallback: order, UplinkFault: func(uplink string) string { return c.faults[uplink] }, SlirpBinary: "slirp4netns", PastaBinary: "pasta"}.fallBack(h)
		if got.Uplink != c.want || !strings.Contains(got.UplinkReason, c.reason) || c.reason == "" && got.UplinkReason != "" {
			t.Errorf("%s: %s, because %q; want %s, %q", c.name, got.Uplink, got.UplinkReason, c.want, c.reason)
		}
	}
}

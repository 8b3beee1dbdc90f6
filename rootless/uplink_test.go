package rootless

import (
	"path/filepath"
	"strings"
	"testing"
)

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

package rootless

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCongestion(t *testing.T) {
	for _, c := range []struct{ now, there, want string }{
		{"bbr", "reno bbr cubic", "cubic"},
		{"bbr", "reno bbr", "reno"},
		{"dctcp", "dctcp cubic reno", "cubic"},
		{"cubic", "reno cubic", ""},
		{"reno", "reno cubic", ""},
		{"bbr", "bbr", ""},
		{"", "", ""},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"tcp_congestion_control": c.now, "tcp_available_congestion_control": c.there} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := congestionFrom(dir); got != c.want {
			t.Errorf("the host's %q of %q: %q, want %q", c.now, c.there, got, c.want)
		}
	}
	for _, uplink := range []string{UplinkGvisor, UplinkNone, UplinkHost} {
		if got := UplinkCongestion(uplink); got != "" {
			t.Errorf("uplink %s: %q", uplink, got)
		}
	}
}

package doctor

import (
	"bytes"
	"compress/gzip"
	"strings"
	"testing"
)

// TestAdvisories: each hole is known in the versions that have it, and in no others.
func TestAdvisories(t *testing.T) {
	for _, c := range []struct{ program, version, has string }{
		{"runc", "1.1.11", "CVE-2024-21626 CVE-2025-31133 CVE-2025-52565 CVE-2025-52881 CVE-2026-41579"},
		{"runc", "1.1.12", "CVE-2025-31133 CVE-2025-52565 CVE-2025-52881 CVE-2026-41579"},
		{"runc", "1.1.5+ds1", "CVE-2024-21626 CVE-2025-31133 CVE-2025-52565 CVE-2025-52881 CVE-2026-41579"},
		{"runc", "1.2.7", "CVE-2025-31133 CVE-2025-52565 CVE-2025-52881 CVE-2026-41579"},
		{"runc", "1.2.8", "CVE-2026-41579"},
		{"runc", "1.3.2", "CVE-2025-31133 CVE-2025-52565 CVE-2025-52881 CVE-2026-41579"},
		{"runc", "1.3.3", "CVE-2026-41579"},
		{"runc", "1.3.6", ""},
		{"runc", "1.4.0-rc.2", "CVE-2025-31133 CVE-2025-52565 CVE-2025-52881 CVE-2026-41579"},
		{"runc", "1.4.2", "CVE-2026-41579"},
		{"runc", "1.4.3", ""},
		{"runc", "1.5.0-rc.2", "CVE-2026-41579"},
		{"runc", "1.5.0", ""},
		{"runc", "1.5.2", ""},
		{"runc", "2.0.0", ""},
		{"crun", "1.8.1", "CVE-2026-30892 CVE-2026-47766 CVE-2026-88264 CVE-2026-88265"},
		{"crun", "1.27", "CVE-2026-47766 CVE-2026-88264 CVE-2026-88265"},
		{"crun", "1.28", "CVE-2026-88264 CVE-2026-88265"},
		{"crun", "1.29.1", "CVE-2026-88264 CVE-2026-88265"},
		{"crun", "1.30", ""},
		{"crun", "1.30.1", ""},
		{"crun", "2.1", ""},
		{"libslirp", "4.4.0", "CVE-2021-3592 CVE-2021-3595"},
		{"libslirp", "4.7.0", ""},
	} {
		_, version := parseVersion(" version " + c.version)
		var has []string
		for _, a := range advisories() {
			if a.program == c.program && a.has(version) {
				has = append(has, a.cve)
			}
		}
		if got := strings.Join(has, " "); got != c.has {
			t.Errorf("%s %s: %q, want %q", c.program, c.version, got, c.has)
		}
	}
}

// TestKnownHoles: what doctor says of programs with holes, mended by the distribution,
// used and not used.
func TestKnownHoles(t *testing.T) {
	f := healthy(t)
	holes := func(check string) *Result {
		t.Helper()
		for _, r := range programs(f.Host) {
			if r.Check == check && strings.Contains(r.What, "known holes") {
				return &r
			}
		}
		return nil
	}
	for _, program := range []string{"crun", "runc", "slirp4netns", "conmon"} {
		if r := holes(program); r != nil {
			t.Errorf("without holes: %+v", r)
		}
	}
	if got := f.UplinkFault("slirp4netns"); got != "" {
		t.Errorf("the fault of an uplink without one: %s", got)
	}
	f.put("/usr/bin/crun", "#!/bin/sh\necho crun version 1.29.1\n", 0o755)
	f.put("/usr/bin/runc", "#!/bin/sh\necho runc version 1.1.5+ds1\n", 0o755)
	f.put("/usr/bin/slirp4netns", "#!/bin/sh\necho slirp4netns version 1.0.1\necho libslirp: 4.4.0\n", 0o755)
	r := holes("crun")
	if r == nil || r.Level != Warning || !strings.Contains(r.What, "crun 1.29.1") || !strings.Contains(r.What, "CVE-2026-88264") ||
		!strings.Contains(r.What, "unless your distribution") || !strings.Contains(r.Fix, "--only-upgrade crun") || !strings.Contains(r.Fix, "crun 1.30;") {
		t.Errorf("crun: %+v", r)
	}
	if r := holes("runc"); r == nil || r.Level != Info {
		t.Errorf("runc, which is not used: %+v", r)
	}
	if r := holes("slirp4netns"); r == nil || !strings.Contains(r.What, "libslirp 4.4.0") {
		t.Errorf("slirp4netns: %+v", r)
	}
	if got := f.UplinkFault("slirp4netns"); !strings.Contains(got, "CVE-2021-3592") {
		t.Errorf("the uplink's fault: %s", got)
	}
	if got := f.UplinkFault("none"); got != "" {
		t.Errorf("the fault of no uplink: %s", got)
	}
	// The package's changelog names what it has mended.
	changelog := func(text string) {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		_, _ = z.Write([]byte(text))
		_ = z.Close()
		f.put("/usr/share/doc/crun/changelog.Debian.gz", out.String(), 0o644)
	}
	f.put("/var/lib/dpkg/info/crun.list", "/usr\n/usr/bin/crun\n", 0o644)
	changelog("crun (1.29.1-1+deb14u1) trixie-security; urgency=high\n\n  * Mend CVE-2026-88264.\n")
	if r := holes("crun"); r == nil || strings.Contains(r.What, "CVE-2026-88264") || !strings.Contains(r.What, "CVE-2026-88265") ||
		!strings.Contains(r.What, "crun 1.29.1-1+deb14u1") || strings.Contains(r.What, "unless") {
		t.Errorf("half mended: %+v", r)
	}
	changelog("crun (1.29.1-1+deb14u2) trixie-security; urgency=high\n\n  * Mend CVE-2026-88265.\n\ncrun (1.29.1-1+deb14u1)\n\n  * Mend CVE-2026-88264.\n")
	if r := holes("crun"); r != nil {
		t.Errorf("mended by the distribution: %+v", r)
	}
	// A program that is not the package's does not profit from it.
	f.put("/usr/local/bin/crun", "#!/bin/sh\necho crun version 1.29.1\n", 0o755)
	f.Path = f.File("/usr/local/bin") + ":" + f.Path
	if r := holes("crun"); r == nil || !strings.Contains(r.What, "CVE-2026-88264") {
		t.Errorf("another program of that name: %+v", r)
	}
}

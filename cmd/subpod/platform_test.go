package main

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestEmulates reads entries as the kernel writes them (Documentation/admin-guide/binfmt-misc.rst).
func TestEmulates(t *testing.T) {
	const arm64 = "interpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\nmagic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
	const s390x = "interpreter /usr/bin/qemu-s390x\nflags: F\noffset 0\nmagic 7f454c4602020100000000000000000000020016\nmask ffffffffffffff00fffffffffffffffffffeffff\n"
	for name, x := range map[string]struct {
		entry, arch string
		want        bool
	}{
		"arm64":                     {"enabled\n" + arm64, "arm64", true},
		"big endian":                {"enabled\n" + s390x, "s390x", true},
		"another one":               {"enabled\n" + arm64, "riscv64", false},
		"disabled":                  {"disabled\n" + arm64, "arm64", false},
		"opened in the container":   {"enabled\ninterpreter /usr/bin/q\nflags: OC\noffset 0\nmagic 7f454c460201010000000000000000000200b700\n", "arm64", false},
		"by extension":              {"enabled\ninterpreter /usr/bin/q\nflags: F\nextension .exe\n", "arm64", false},
		"an architecture of no ELF": {"enabled\n" + arm64, "wasm", false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "x"), []byte(x.entry), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := emulates(dir, x.arch); got != x.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if emulates(filepath.Join(t.TempDir(), "none"), "arm64") {
		t.Error("without binfmt_misc")
	}
}

func TestPlatformAsked(t *testing.T) {
	here := runtime.GOOS + "/" + runtime.GOARCH
	for want, p := range map[string]platformFlags{
		"":                        {},
		"linux/arm64":             {platform: "linux/aarch64"},
		"linux/arm/v7":            {platform: "Linux/arm/V7"},
		"linux/s390x":             {arch: "s390x"},
		here:                      {os: "linux"},
		"windows/amd64":           {platform: "windows/x86_64"},
		here + "/v2":              {variant: "v2"},
		"linux/" + runtime.GOARCH: {platform: "linux"},
	} {
		if got, err := p.asked(); err != nil || got != want && !(want == "linux/"+runtime.GOARCH && got == here) {
			t.Errorf("%+v: %q, %v, want %q", p, got, err, want)
		}
	}
	for _, p := range []platformFlags{{platform: "linux/arm64", arch: "arm64"}, {platform: "a/b/c/d"}, {platform: "linux//v7"}, {arch: "arm/v7"}} {
		if got, err := p.asked(); err == nil {
			t.Errorf("%+v: %q", p, got)
		}
	}
}

package cpuarch

import "testing"

func TestName(t *testing.T) {
	for name, want := range map[string]string{
		"": "", "amd64": "amd64", "X86_64": "amd64", "i686": "386", "aarch64": "arm64", "armv7l": "arm", "ppc64el": "ppc64le", "S390X": "s390x",
	} {
		if got := Name(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

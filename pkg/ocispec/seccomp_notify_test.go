package ocispec

import (
	"strings"
	"testing"
)

// TestSeccompNotify: a profile whose decisions nobody would make is refused, as runc
// refuses it; the kernel would answer ENOSYS.
func TestSeccompNotify(t *testing.T) {
	const notify = `"syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]`
	for profile, want := range map[string]string{
		`{"defaultAction": "SCMP_ACT_ALLOW", ` + notify + `}`:                                "without a listenerPath",
		`{"defaultAction": "SCMP_ACT_NOTIFY"}`:                                               "without a listenerPath",
		`{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/l.sock", ` + notify + `}`: "",
	} {
		_, err := resolveProfile([]byte(profile), nil)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", profile, err, want)
		}
	}
}

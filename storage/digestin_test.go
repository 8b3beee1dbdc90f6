package storage

import "testing"

func TestDigestIn(t *testing.T) {
	const digest = "@sha256:1ff8a05cb296cbf4f437687e8b3b71dec69584014b0804072ea58e6d5b473e1c"
	i := Image{RepoDigests: []string{"quay.io/mirror/busybox" + digest, "docker.io/library/busybox" + digest, "localhost:5000/busybox" + digest}}
	for name, want := range map[string]string{
		"busybox": "docker.io/library/busybox" + digest, "quay.io/mirror/busybox:1": "quay.io/mirror/busybox" + digest,
		"localhost:5000/busybox" + digest: "localhost:5000/busybox" + digest, "quay.io/other": "", "": "", "A B": "",
	} {
		if got := i.DigestIn(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

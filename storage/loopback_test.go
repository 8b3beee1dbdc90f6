package storage

import "testing"

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "LocalHost:80": true, "localhost:5000": true, "127.0.0.1": true, "127.1.2.3:80": true, "[::1]:5000": true, "[::1]": true,
		"localhost.example.com": false, "example.com:5000": false, "10.0.0.1": false, "127.0.0.1.example.com": false, "": false,
	} {
		if got := onLoopback(host); got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}

// TestPlainLocalhost: a registry on this machine needs no entry in registries.conf to be asked
// in plain HTTP, and keeps to the entry that it has.
func TestPlainLocalhost(t *testing.T) {
	o := testOptions(t, t.TempDir(), DriverFuse)
	f := startFake(t, sample(t, "local"), nil)
	s := openStore(t, o)
	if _, err := s.Images.Pull(t.Context(), PullRequest{Ref: f.host + "/app:1"}); err != nil {
		t.Errorf("without registries.conf: %v", err)
	}
	writeFile(t, o.RegistriesConf, "[[registry]]\nlocation = \""+f.host+"\"\n")
	if _, err := s.Images.Pull(t.Context(), PullRequest{Ref: f.host + "/app:2"}); err == nil {
		t.Error("an entry without insecure = true is not followed")
	}
}

// TestPlainLocalPush: a push to such a registry finds out as well that it speaks plain HTTP.
func TestPlainLocalPush(t *testing.T) {
	s := openStore(t, testOptions(t, t.TempDir(), DriverFuse))
	r := startRegistry(t, false)
	img := sample(t, "local")
	loadInto(t, s, "example.com/local:v1", img)
	if _, err := s.Images.Push(t.Context(), "example.com/local:v1", r.host+"/app:v1"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Images.Pull(t.Context(), PullRequest{Ref: r.host + "/app:v1"}); err != nil || got.ID != img.id() {
		t.Errorf("pulled %s, %v, want %s", got.ID, err, img.id())
	}
}

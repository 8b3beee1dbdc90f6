package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// Every field survives Save and LoadSaved.
func TestSaved(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "subpod.toml")
	text := `
[daemon]
data_dir = "/data"
run_dir = "/run/x"
[node]
binds = ["/a:/b:ro", "/c:/d"]
copy_up = ["/etc"]
[storage]
additional_image_stores = ["/ro"]
[images]
pull_timeout = "7s"
pinned = ["a*"]
[network]
subnets = ["10.1.0.0/16", "fd00:1::/64"]
expose = ["auto", "services", "tcp:8080"]
ingress_rate = "10M"
[runtime.handlers.mine]
path = "/bin/mine"
args = ["--x"]
`
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want, err := Load(source, nil)
	if err == nil {
		err = want.Resolve(func(string) string { return "/xdg" })
	}
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "saved.json")
	if _, err := LoadSaved(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing is saved: %v", err)
	}
	if err := Save(file, want); err != nil {
		t.Fatal(err)
	}
	got, err := LoadSaved(file)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(want) || !want.Equal(got) {
		t.Error("the loaded one is not equal to the saved one")
	}
	got.origins, want.origins = nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("loaded\n%+v\nsaved\n%+v", got, want)
	}
	if got.Images.Pinned = nil; got.Equal(want) {
		t.Error("another list is equal")
	}
}

// What another version wrote: keys that are missing have their default, others are
// left out, values that are refused are reported.
func TestSavedOtherVersion(t *testing.T) {
	file := filepath.Join(t.TempDir(), "saved.json")
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{`{"Images": {"MaxParallelDownloads": 5}, "Later": {"Key": 1}}`, true},
		{`{"Images": {"PullTimeout": "1ms"}}`, false},
		{`{"Images": `, false},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := LoadSaved(file)
		if c.ok {
			if err != nil || got.Images.MaxParallelDownloads != 5 || got.Images.PullTimeout != Default().Images.PullTimeout {
				t.Errorf("%s: %+v, %v", c.text, got, err)
			}
		} else if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", c.text, err)
		}
	}
}

// What served in a subnet that has become the uplink's since serves on: the uplink of a node
// that is there is what it was.
func TestSavedBeforeUplinkIPv6(t *testing.T) {
	file := filepath.Join(t.TempDir(), "saved.json")
	for subnet, ipv6 := range map[string]bool{"fd00::/64": false, "fd01::/64": true} {
		if err := os.WriteFile(file, []byte(`{"Network": {"Subnets": ["10.88.0.0/16", "`+subnet+`"]}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadSaved(file); err != nil || got.Node.UplinkIPv6 != ipv6 {
			t.Errorf("%s: %v; want uplink_ipv6 = %v", subnet, err, ipv6)
		}
	}
}

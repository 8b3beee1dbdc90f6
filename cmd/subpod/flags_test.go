package main

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

func TestParseDetachKeys(t *testing.T) {
	for text, want := range map[string][]byte{"": nil, "ctrl-p,ctrl-q": {0x10, 0x11}, "CTRL-P": {0x10}, "a,ctrl-[": {'a', 0x1b}, "ctrl-@": {0}} {
		if got, err := parseDetachKeys(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"ctrl-", "ctrl-1", "ab", ",", "é"} {
		if got, err := parseDetachKeys(text); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, %v; want errUsage", text, got, err)
		}
	}
}

func TestImageChange(t *testing.T) {
	c := &api.ImageChanges{}
	for _, text := range []string{`CMD ["a", "b"]`, "entrypoint /run me", "ENV A=1", "ENV=B=2", "ENV C d e", "LABEL x=y", "EXPOSE 80", "USER 5", "WORKDIR /w", "VOLUME /v", "STOPSIGNAL USR1"} {
		if err := imageChange(c, text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	user, dir, signal := "5", "/w", "USR1"
	want := &api.ImageChanges{Cmd: []string{"a", "b"}, Entrypoint: []string{"/bin/sh", "-c", "/run me"}, Env: []string{"A=1", "B=2", "C=d e"},
		Labels: map[string]string{"x": "y"}, Ports: []string{"80/tcp"}, Volumes: []string{"/v"}, User: &user, WorkingDir: &dir, StopSignal: &signal}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v\nwant %+v", c, want)
	}
	for _, text := range []string{"", "CMD", "RUN x", "ONBUILD x"} {
		if err := imageChange(c, text); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v; want errUsage", text, err)
		}
	}
}

// TestKeepID: every ID of the container is one of the node, each once, and the one that is
// kept is this user's.
func TestKeepID(t *testing.T) {
	for _, id := range []uint32{0, 1, 1000, 65536} {
		var next, sum uint32
		seen := map[uint32]bool{}
		for _, m := range keepID(id, 65537) {
			if m.ContainerId != next {
				t.Errorf("%d: a mapping begins at %d, want %d", id, m.ContainerId, next)
			}
			if m.HostId == 0 && m.ContainerId != id {
				t.Errorf("%d: this user is %d", id, m.ContainerId)
			}
			for i := range m.Length {
				if seen[m.HostId+i] {
					t.Fatalf("%d: the node's %d is mapped twice", id, m.HostId+i)
				}
				seen[m.HostId+i] = true
			}
			next, sum = next+m.Length, sum+m.Length
		}
		if sum != 65537 {
			t.Errorf("%d: %d IDs are mapped", id, sum)
		}
	}
}

func TestHealthOptions(t *testing.T) {
	base := healthOptions{command: "true", interval: "30s", timeout: "5s", startPeriod: "0s", onFailure: "none", retries: 3}
	h, err := base.parse()
	if err != nil || !slices.Equal(h.Command, []string{"sh", "-c", "true"}) || h.Timeout != 5*time.Second {
		t.Errorf("%+v, %v", h, err)
	}
	list := base
	list.command = `["CMD", "a", "b"]`
	if h, err := list.parse(); err != nil || !slices.Equal(h.Command, []string{"a", "b"}) {
		t.Errorf("%+v, %v", h, err)
	}
	off := base
	off.off = true
	if h, err := off.parse(); err != nil || h != nil {
		t.Errorf("%+v, %v", h, err)
	}
	for name, change := range map[string]func(*healthOptions){
		"interval": func(h *healthOptions) { h.interval = "5" }, "timeout": func(h *healthOptions) { h.timeout = "1ms" },
		"retries": func(h *healthOptions) { h.retries = 0 }, "action": func(h *healthOptions) { h.onFailure = "start" },
		"list": func(h *healthOptions) { h.command = "[" }, "empty": func(h *healthOptions) { h.command = `["CMD"]` },
	} {
		bad := base
		change(&bad)
		if h, err := bad.parse(); !errors.Is(err, errUsage) {
			t.Errorf("%s: %+v, %v; want errUsage", name, h, err)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for text, want := range map[string]runtimeapi.Signal{
		"TERM": runtimeapi.Signal_SIGNAL_SIGTERM, "SIGUSR1": runtimeapi.Signal_SIGNAL_SIGUSR1, "9": runtimeapi.Signal_SIGNAL_SIGKILL,
		"sigrtmin+3": runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, "37": runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3,
	} {
		if got, err := parseStopSignal(text); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "99", "NOSUCH", "RUNTIME_DEFAULT"} {
		if got, err := parseStopSignal(text); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, %v; want errUsage", text, got, err)
		}
	}
}

// TestMounts: what --mount, --tmpfs and -v PATH become.
func TestMounts(t *testing.T) {
	dir := t.TempDir()
	l := &mountList{volumesDir: "/volumes", options: &api.ContainerOptions{}}
	for _, text := range []string{"type=bind,source=" + dir + ",target=/a,readonly", "src=vol,dst=/b,volume-nocopy", "dst=/c", "type=tmpfs,dst=/d,tmpfs-size=1m,tmpfs-mode=700",
		"type=image,src=busybox,dst=/e,subpath=etc"} {
		if err := l.addMount(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	if len(l.mounts) != 3 || !l.mounts[0].Readonly || l.mounts[1].HostPath != "/volumes/vol" || l.mounts[2].ImageSubPath != "etc" {
		t.Errorf("%v", l.mounts)
	}
	want := &api.ContainerOptions{Volumes: []api.NamedVolume{{Name: "vol", Path: "/b", NoCopy: true}}, Anonymous: []string{"/c"},
		Tmpfs: []api.Tmpfs{{Path: "/d", Options: []string{"nosuid", "nodev", "noexec", "size=1048576", "mode=700"}}}}
	if !reflect.DeepEqual(l.options, want) {
		t.Errorf("%+v\nwant %+v", l.options, want)
	}
	for _, text := range []string{"", "type=bind,dst=/x", "type=bind,src=/nosuch,dst=/x", "dst=relative", "type=devpts,dst=/x", "type=other,dst=/x", "src=a/b,dst=/x", "src=v,dst=/x,nosuch"} {
		if err := l.addMount(text); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v; want errUsage", text, err)
		}
	}
	for _, text := range []string{"relative", "/x:size=lots", "/x:tmpcopyup"} {
		if err := l.addTmpfs(text); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v; want errUsage", text, err)
		}
	}
}

func TestPsFilters(t *testing.T) {
	rows := []containerRow{
		{ID: "aaa111", Name: "one", State: "running", Image: "docker.io/library/busybox:latest", Labels: map[string]string{"a": "1"}, Health: "healthy"},
		{ID: "bbb222", Name: "two", State: "exited", ExitCode: new(int32), Image: "example.com/app:v1", Labels: map[string]string{}},
	}
	for text, want := range map[string]string{
		"id=aaa": "one", "name=tw": "two", "name=^o": "one", "status=exited": "two", "label=a": "one", "label=a=2": "", "label!=a": "two",
		"ancestor=busybox": "one", "ancestor=app": "two", "exited=0": "two", "health=healthy": "one", "health=none": "two",
	} {
		f, err := parsePsFilters([]string{text})
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, err := f.apply(rows)
		names := ""
		for _, r := range got {
			names += r.Name
		}
		if err != nil || names != want {
			t.Errorf("%s: %q, %v; want %q", text, names, err, want)
		}
	}
	for _, text := range []string{"", "name", "nosuch=1", "status=odd", "name=(", "id!=a"} {
		if _, err := parsePsFilters([]string{text}); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v; want errUsage", text, err)
		}
	}
}

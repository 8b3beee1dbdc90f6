package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestExecBesideChroot: a command runs in the container's own root directory, also where
// its init has changed to another, with other programs.
func TestExecBesideChroot(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{
			handler: handler, args: []string{"/bin/busybox", "chroot", "/jail", "/bin/busybox", "sleep", "1000"},
			change: func(s *specs.Spec) {
				bin := filepath.Join(s.Root.Path, "jail/bin")
				if err := os.MkdirAll(bin, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Link(filepath.Join(s.Root.Path, "bin/busybox"), filepath.Join(bin, "busybox")); err != nil {
					t.Fatal(err)
				}
				for file, content := range map[string]string{"bin/who": "#!/bin/sh\necho container\n", "jail/bin/who": "#!/bin/none\n"} {
					if err := os.WriteFile(filepath.Join(s.Root.Path, file), []byte(content), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
					*set = append(*set, "CAP_SYS_CHROOT")
				}
			},
		}).start()
		root := fmt.Sprintf("/proc/%d/root", b.ctr.Init.PID)
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if to, err := os.Readlink(root); err == nil && filepath.Base(to) == "jail" {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("%s is %s, %v", root, to, err)
			}
		}
		if r, err := b.exec(0, "who"); err != nil || string(r.Stdout) != "container\n" {
			t.Errorf("%q, %v", r.Stdout, err)
		}
	})
}

// TestExecOnHungFileSystem: a file system in a container that never answers holds up
// neither the end of an exec nor, by many of them, the server.
func TestExecOnHungFileSystem(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE on this machine: %v", err)
	}
	e := executor(t)
	b := create(t, e, container{
		args: sh("exec 3<>/dev/fuse; busybox mount -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none /tmp; exec sleep 1000"),
		change: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/fuse", Type: "bind", Source: "/dev/fuse", Options: []string{"bind"}})
			for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
				*set = append(*set, "CAP_SYS_ADMIN")
			}
		},
	}).start()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", b.ctr.Init.PID)); strings.Contains(string(mounts), " /tmp fuse ") {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%s: %v", mounts, err)
		}
	}
	if _, err := b.exec(100*time.Millisecond, "/tmp/program"); !errors.Is(err, ErrTimeout) {
		t.Errorf("%v, want %v", err, ErrTimeout)
	}
	for range cap(looks) {
		select {
		case looks <- struct{}{}:
			defer func() { <-looks }()
		default: // the one above is still there
		}
	}
	if r, err := b.exec(0, "/bin/echo", "fine"); err != nil || string(r.Stdout) != "fine\n" {
		t.Errorf("with all looks taken: %q, %v", r.Stdout, err)
	}
}

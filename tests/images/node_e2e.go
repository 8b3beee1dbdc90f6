package main

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"runtime"

	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// nodeE2ESources is what the images of Kubernetes' node e2e suite are made of.
type nodeE2ESources struct {
	cache   string // fetch.sh's
	sysroot string // tests/kubernetes/packages.sh's
	agnhost string // the program
	source  string // of agnhost, for the certificate that it serves
}

// nodeE2E lists the images that the suite of Kubernetes 1.37 pulls in the specs of its label
// NodeConformance.
func nodeE2E(s nodeE2ESources) ([]recipe, error) {
	bb, err := busyboxLayer(filepath.Join(s.cache, "busybox"))
	if err != nil {
		return nil, err
	}
	nonewprivs, err := static(s.cache, "nonewprivs")
	if err != nil {
		return nil, err
	}
	pause, err := static(s.cache, "pause")
	if err != nil {
		return nil, err
	}
	nginx := nginxLayer(s.sysroot)
	serve := v1.ImageConfig{
		Env: env(), Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}
	nonroot := shell()
	nonroot.User = "1234"
	pauseRecipe := recipe{
		names: []string{k8s + "pause:3.10.2"}, layers: []*layer{pause},
		config: v1.ImageConfig{Env: env(), Entrypoint: []string{"/pause"}, User: "65535:65535"},
	}
	agnhost, err := agnhostLayer(s, pauseRecipe)
	if err != nil {
		return nil, err
	}
	agn := v1.ImageConfig{Env: env(), Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, ExposedPorts: map[string]struct{}{}}
	for _, port := range []string{"80", "8080", "8081", "9376", "5000"} {
		agn.ExposedPorts[port+"/tcp"] = struct{}{}
	}
	return []recipe{
		{names: []string{e2e + "busybox:1.37.0-2", e2e + "busybox:1.36.1-1", "docker.io/library/busybox:latest"}, layers: []*layer{bb}, config: shell()},
		{names: []string{e2e + "nonroot:1.5"}, layers: []*layer{bb, marker("nonroot")}, config: nonroot},
		pauseRecipe,
		{names: []string{e2e + "nonewprivs:1.4"}, layers: []*layer{nonewprivs}, config: v1.ImageConfig{Env: env(), Entrypoint: []string{"/nonewprivs"}}},
		{names: []string{e2e + "nginx:1.27.0-2"}, layers: []*layer{bb, nginx}, config: serve},
		{names: []string{e2e + "nginx:1.28.0-2"}, layers: []*layer{bb, nginx, marker("nginx 1.28")}, config: serve},
		{names: []string{e2e + "glibc-dns-testing:2.1.1"}, layers: []*layer{bb, programsLayer(s.sysroot, "usr/bin/dig", "bin/hostname", "usr/bin/getent")}, config: shell()},
		{names: []string{e2e + "ipc-utils:1.4"}, layers: []*layer{bb, programsLayer(s.sysroot, "usr/bin/ipcs", "usr/bin/ipcmk")}, config: shell()},
		{names: []string{e2e + "agnhost:2.66.1"}, layers: []*layer{bb, agnhost}, config: agn},
		{names: []string{e2e + "agnhost:2.55"}, layers: []*layer{bb, agnhost, marker("agnhost 2.55")}, config: agn},
	}, nil
}

// programsLayer has programs of Debian where Debian has them, and what says that names are
// looked up in files and by DNS.
func programsLayer(sysroot string, programs ...string) *layer {
	l := newLayer()
	for _, program := range programs {
		l.program(sysroot, program, "/"+program)
	}
	l.file("/etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files dns\n"))
	return l
}

// agnhostLayer has agnhost and the programs that specs run beside it, an account whose
// groups a spec looks for, and an image for the registry that agnhost can be.
func agnhostLayer(s nodeE2ESources, served recipe) (*layer, error) {
	l := programsLayer(s.sysroot, "bin/bash", "usr/bin/curl", "usr/bin/dig", "usr/bin/socat", "bin/ip", "bin/ss", "usr/bin/ipcs")
	// Busybox's lacks what specs ask for.
	l.program(s.sysroot, "bin/nc.openbsd", "/bin/nc")
	l.copy("/agnhost", 0o755, s.agnhost)
	l.symlink("/agnhost-2", "agnhost")
	l.dir("/uploads", 0o755)
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		l.copy("/"+name, 0o644, filepath.Join(s.source, "porter", name))
	}
	l.file("/etc/passwd", 0o644, []byte(passwd+"user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"))
	l.file("/etc/group", 0o644, []byte(group+"user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"))
	return l, serveImage(l, "/var/registry/pause", "testing", served)
}

// serveImage lays an image out as agnhost's fake-registry-server reads it: behind an index,
// each blob under its digest.
func serveImage(l *layer, dir, tag string, r recipe) error {
	img, err := newImage(r)
	if err != nil {
		return err
	}
	top := img.top
	top.Platform = &v1.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	index, err := json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{top},
	})
	if err != nil {
		return err
	}
	put := func(kind string, data []byte) digest.Digest {
		d := digest.FromBytes(data)
		l.file(filepath.Join(dir, kind, "sha256", d.Encoded()[:2], d.Encoded(), "data"), 0o644, data)
		return d
	}
	put("manifests", img.topData)
	l.file(filepath.Join(dir, "manifests", tag), 0o644, []byte(put("manifests", index)+"\n"))
	for d, data := range img.blobs {
		if put("blobs", data) != d {
			return errors.New("the digest of a blob is not that of its content")
		}
	}
	return nil
}

package main

import (
	"archive/tar"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const ctrd = "ghcr.io/containerd/"

// foreignRecipes lists the images that containerd's CRI integration tests ask for
// (integration/images of its module), built from what is here.
func foreignRecipes(bb, nginx, pause *layer) []recipe {
	serve := v1.ImageConfig{Env: env(), Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT"}
	copyUp := shell()
	copyUp.Volumes = map[string]struct{}{"/test_dir": {}, "C:/weird_test_dir": {}, "/:colon_prefixed": {}}
	ownership := shell()
	ownership.Volumes = map[string]struct{}{"/test_dir": {}}
	resources := shell()
	resources.Cmd = []string{"sleep", "365d"}
	return []recipe{
		{names: []string{ctrd + "alpine:3.14.0"}, layers: []*layer{bb, alpine()}, config: shell()},
		{names: []string{ctrd + "busybox:1.36"}, layers: []*layer{bb, wheel()}, config: shell()},
		{names: []string{k8s + "pause:3.10.2"}, layers: []*layer{pause, marker("pause 3.10.2")},
			config: v1.ImageConfig{Env: env(), Entrypoint: []string{"/pause"}}},
		{names: []string{e2e + "resource-consumer:1.10"}, layers: []*layer{bb, marker("resource-consumer")}, config: resources},
		{names: []string{ctrd + "volume-copy-up:2.2"}, layers: []*layer{bb, copyUpFiles()}, config: copyUp},
		{names: []string{ctrd + "volume-ownership:2.1"}, layers: []*layer{bb, nobodysDirectory()}, config: ownership},
		{names: []string{ctrd + "nginx:1.27.0"}, layers: []*layer{bb, nginx, noticesOfNginx()}, config: serve},
	}
}

// alpine has what a test expects of Alpine: a release file, and a shell that is a
// symbolic link.
func alpine() *layer {
	l := newLayer()
	l.file("/etc/os-release", 0o644, []byte("ID=alpine\nVERSION_ID=3.14.0\n"))
	l.put(tar.Header{Typeflag: tar.TypeSymlink, Name: "/bin/sh", Linkname: "/bin/busybox", Mode: 0o777}, nil)
	return l
}

// wheel has the groups of the public busybox image: root is in wheel.
func wheel() *layer {
	l := newLayer()
	l.file("/etc/group", 0o644, []byte("root:x:0:\ndaemon:x:1:\nbin:x:2:\nwheel:x:10:root\nwww-data:x:33:\nusers:x:100:\nnobody:x:65534:\n"))
	return l
}

// copyUpFiles are those of volume-copy-up: a file in each VOLUME.
func copyUpFiles() *layer {
	l := newLayer()
	for _, name := range []string{"/test_dir/test_file", "/C:/weird_test_dir/weird_test_file", "/:colon_prefixed/colon_prefixed_file"} {
		l.file(name, 0o644, []byte("test_content\n"))
	}
	return l
}

func nobodysDirectory() *layer {
	l := newLayer()
	l.put(tar.Header{Typeflag: tar.TypeDir, Name: "/test_dir/", Mode: 0o755, Uid: 65534, Gid: 65534}, nil)
	return l
}

// noticesOfNginx makes nginx log what it does when it starts, as its public image does.
func noticesOfNginx() *layer {
	l := newLayer()
	l.file("/etc/nginx/nginx.conf", 0o644, []byte(`user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 256; }
http {
	access_log /dev/stdout;
	include /etc/nginx/conf.d/*.conf;
}
`))
	return l
}

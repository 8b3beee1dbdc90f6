package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	k8s   = "registry.k8s.io/"
	e2e   = k8s + "e2e-test-images/"
	tools = "gcr.io/k8s-staging-cri-tools/"
	ecr   = "public.ecr.aws/docker/library/"
)

func env() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// shell is the config of a busybox image.
func shell() v1.ImageConfig { return v1.ImageConfig{Env: env(), Cmd: []string{"sh"}} }

// recipes lists every image that critest 1.36, containerd's tests and ours ask for, but for one
// that is named by the digest of a public image (test-image-digest).
func recipes(cache string) ([]recipe, error) {
	bb, err := busyboxLayer(filepath.Join(cache, "busybox"))
	if err != nil {
		return nil, err
	}
	sysroot := filepath.Join(cache, "sysroot")
	nginx := nginxLayer(sysroot)
	hostnet := newLayer()
	hostnet.file("/etc/nginx/conf.d/default.conf", 0o644, nginxServer(12003))
	pause, err := static(cache, "pause")
	if err != nil {
		return nil, err
	}
	nonewprivs, err := static(cache, "nonewprivs")
	if err != nil {
		return nil, err
	}

	serve := v1.ImageConfig{
		Env: env(), Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}
	httpd := v1.ImageConfig{Env: env(), Cmd: []string{"httpd", "-D", "FOREGROUND", "-f", "/etc/httpd.conf"}, StopSignal: "SIGWINCH"}
	list := []recipe{
		{names: []string{"docker.io/library/busybox:latest"}, layers: []*layer{bb}, config: shell(), export: true},
		{names: []string{e2e + "busybox:1.29-2"}, layers: []*layer{bb, marker("e2e-busybox")}, config: shell(), index: true},
		{names: []string{e2e + "nginx:1.14-2"}, layers: []*layer{bb, nginx}, config: serve, index: true},
		{names: []string{tools + "hostnet-nginx-amd64", tools + "hostnet-nginx-arm64"}, layers: []*layer{bb, nginx, hostnet}, config: serve},
		{names: []string{e2e + "httpd:2.4.39-4"}, layers: []*layer{bb, httpdLayer(sysroot)}, config: httpd},
		{names: []string{e2e + "nonewprivs:1.3"}, layers: []*layer{nonewprivs}, docker: true,
			config: v1.ImageConfig{Env: env(), Entrypoint: []string{"/nonewprivs"}}},
		{names: []string{k8s + "pause:3.9", "k8s.gcr.io/pause:3.9"}, layers: []*layer{pause}, docker: true,
			config: v1.ImageConfig{Env: env(), Entrypoint: []string{"/pause"}, User: "65535:65535"}},
		{names: []string{tools + "test-image-predefined-group"}, layers: []*layer{bb, predefinedGroup()},
			config: v1.ImageConfig{Env: env(), Cmd: []string{"sh"}, User: "1000"}},
	}
	for name, user := range map[string]string{
		"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004",
	} {
		config := shell()
		config.User = user
		list = append(list, recipe{names: []string{tools + "test-image-user-" + name}, layers: []*layer{bb}, config: config})
	}
	for _, name := range []string{
		tools + "test-image-1", tools + "test-image-2", tools + "test-image-3", tools + "test-image-latest",
		tools + "test-image-tag:test", tools + "test-image-tag:all",
		ecr + "busybox:1", ecr + "busybox:1.35.0-glibc", ecr + "busybox:1-uclibc", ecr + "busybox:1-glibc", ecr + "busybox:1-musl",
	} {
		list = append(list, recipe{names: []string{name}, layers: []*layer{bb, marker(name)}, config: shell(), docker: true})
	}
	list = append(list, foreignRecipes(bb, nginx, pause)...)
	return append(list, recipe{
		names:  []string{tools + "test-image-tags:1", tools + "test-image-tags:2", tools + "test-image-tags:3"},
		layers: []*layer{bb, marker("tags")}, config: shell(),
	}), nil
}

// marker makes an image differ from others that are built alike.
func marker(text string) *layer {
	l := newLayer()
	l.file("/etc/image", 0o644, []byte(text+"\n"))
	return l
}

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`

const group = `root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
mail:x:8:
www-data:x:33:
users:x:100:
nobody:x:65534:
`

// busyboxLayer lays busybox out as the public image does: a hard link in /bin for
// each applet. Not symbolic links: masking /bin/ls must mask ls alone.
func busyboxLayer(busybox string) (*layer, error) {
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("applets of %s: %w", busybox, err)
	}
	l := newLayer()
	for _, dir := range []string{"/bin", "/dev", "/etc", "/home", "/proc", "/root", "/sys", "/usr/bin", "/usr/sbin", "/var/www", "/var/spool/mail", "/var/run"} {
		l.dir(dir, 0o755)
	}
	l.dir("/tmp", 0o1777)
	l.dir("/var/tmp", 0o1777)
	l.copy("/bin/busybox", 0o755, busybox)
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			l.hardlink("/bin/"+applet, "/bin/busybox")
		}
	}
	l.hardlink("/usr/bin/env", "/bin/busybox")
	l.file("/etc/passwd", 0o644, []byte(passwd))
	l.file("/etc/group", 0o644, []byte(group))
	return l, nil
}

func predefinedGroup() *layer {
	l := newLayer()
	l.file("/etc/passwd", 0o644, []byte(passwd+"default-user:x:1000:1000::/home/default-user:/bin/sh\n"))
	l.file("/etc/group", 0o644, []byte(group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"))
	return l
}

func nginxLayer(sysroot string) *layer {
	l := newLayer()
	l.program(sysroot, "usr/sbin/nginx", "/usr/sbin/nginx")
	l.file("/etc/nginx/nginx.conf", 0o644, []byte(`user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /dev/stderr;
events { worker_connections 256; }
http {
	access_log /dev/stdout;
	types { text/html html; text/plain txt; }
	include /etc/nginx/conf.d/*.conf;
}
`))
	l.file("/etc/nginx/conf.d/default.conf", 0o644, nginxServer(80))
	l.file("/usr/share/nginx/html/index.html", 0o644, []byte("<title>Welcome to nginx!</title>\n<h1>Welcome to nginx!</h1>\n"))
	for _, dir := range []string{"/var/lib/nginx/body", "/var/log/nginx", "/var/run", "/run"} {
		l.dir(dir, 0o755)
	}
	return l
}

func nginxServer(port int) []byte {
	return fmt.Appendf(nil, "server {\n\tlisten %d;\n\tlisten [::]:%d;\n\troot /usr/share/nginx/html;\n}\n", port, port)
}

func httpdLayer(sysroot string) *layer {
	l := newLayer()
	l.program(sysroot, "usr/sbin/apache2", "/usr/sbin/httpd")
	var load strings.Builder
	for _, module := range []string{"mpm_prefork", "authz_core", "dir"} {
		file := "mod_" + module + ".so"
		l.program(sysroot, filepath.Join("usr/lib/apache2/modules", file), "/usr/lib/apache2/modules/"+file)
		fmt.Fprintf(&load, "LoadModule %s_module /usr/lib/apache2/modules/%s\n", module, file)
	}
	l.file("/etc/httpd.conf", 0o644, []byte(load.String()+`ServerName localhost
Listen 80
PidFile /var/run/httpd.pid
DefaultRuntimeDir /var/run
User www-data
Group www-data
DocumentRoot /var/www
DirectoryIndex index.html
ErrorLog /dev/stderr
LogLevel notice
`))
	l.file("/var/www/index.html", 0o644, []byte("<html><body><h1>It works!</h1></body></html>\n"))
	return l
}

// static builds one of the small programs in static/ and returns a layer that has
// nothing else, setuid root where the name says what for.
func static(cache, name string) (*layer, error) {
	bin := filepath.Join(cache, name)
	cmd := exec.Command(goCommand(), "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./tests/images/static/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	defer os.Remove(bin)
	l := newLayer()
	mode := int64(0o755)
	if name == "nonewprivs" {
		mode = 0o4755
	}
	l.copy("/"+name, mode, bin)
	return l, nil
}

// goCommand is the go that runs this program, when the Makefile says which.
func goCommand() string {
	if command := os.Getenv("GO"); command != "" {
		return command
	}
	return "go"
}

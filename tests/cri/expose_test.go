package cri

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// TestExpose: what listens in pods on the node's network is reached from the host, as
// listed or found, and no longer when it has gone. Ports are free again at the end of
// the server, too.
func TestExpose(t *testing.T) {
	port := freePort(t)
	n := node.Start(t, node.Options{Config: fmt.Sprintf("[network]\nexpose = [\"tcp:%d\", \"auto\"]\n", port)})
	n.Crictl("pull", nginx)
	host := hostAddress(t)
	hostNet := linux(obj{"network": 2, "pid": 1})
	p := runPod(t, n, "web", nil, obj{"linux": hostNet})
	// nginx of the test image listens on 80: it is told another.
	sh := fmt.Sprintf("sed -i 's/listen *80;/listen %d;/' /etc/nginx/nginx.conf /etc/nginx/sites-enabled/* /etc/nginx/conf.d/* 2>/dev/null; exec nginx -g 'daemon off;'", port)
	id := p.run("nginx", []string{"sh", "-c", sh}, obj{"image": obj{"image": nginx}, "linux": hostNet})
	for _, address := range []string{"127.0.0.1", host} {
		eventually(t, "page from "+address, func() error {
			resp, err := http.Get(fmt.Sprintf("http://%s:%d/", address, port))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "Welcome to nginx") {
				return fmt.Errorf("%q, %v, %s", body, err, n.Crictl("logs", id))
			}
			return nil
		})
	}
}

// TestAutoExpose: a listener that comes and goes.
func TestAutoExpose(t *testing.T) {
	port := freePort(t)
	n := node.Start(t, node.Options{Config: "[network]\nexpose = [\"auto\"]\n"})
	n.Crictl("pull", busybox)
	hostNet := linux(obj{"network": 2, "pid": 1})
	p := runPod(t, n, "nc", nil, obj{"linux": hostNet})
	id := p.run("nc", []string{"nc", "-lk", "-p", fmt.Sprint(port), "-e", "echo", "here"}, obj{"linux": hostNet})
	dial := func() (string, error) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return "", err
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		return string(b), err
	}
	eventually(t, "answer", func() error {
		if got, err := dial(); err != nil || got != "here\n" {
			return fmt.Errorf("%q, %v", got, err)
		}
		return nil
	})
	n.Crictl("stop", "-t", "0", id)
	eventually(t, "port free again", func() error {
		l, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err == nil {
			l.Close()
		}
		return err
	})
}

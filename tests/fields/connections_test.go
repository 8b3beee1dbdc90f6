package fields

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// TestOpenConnections: pods that end with open connections, whose other end does not
// answer any more, leave nothing. By itself the kernel keeps their network namespaces
// for 100 seconds.
func TestOpenConnections(t *testing.T) {
	const links = `s/^ *\(sp[0-9a-f][0-9a-f]*\):.*/\1/p`
	only(t, nil, func(e env) {
		server := e.pod("server", nil)
		s := server.start("c", sh("nc -l -p 80 -e cat"))
		eventually(e, "the server listens", func() error {
			if out := s.sh("netstat -ltn"); !strings.Contains(out, ":80 ") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		client := e.pod("client", nil)
		c := client.start("c", sh("(echo hello; sleep 1000) | nc "+server.status().Network.Ip+" 80"))
		eventually(e, "the connection is there", func() error {
			if out := c.sh("netstat -tn"); !strings.Contains(out, "ESTABLISHED") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		// Neither hears of the other's end.
		e.n.Enter("sh", "-c", `for l in $(sed -n "$0" /proc/net/dev); do ip link set $l down; done`, links)
		c.stop(0)
		s.stop(0)
		client.remove()
		server.remove()
		eventually(e, "their links are gone", func() error {
			if left := e.n.Enter("sed", "-n", links, "/proc/net/dev"); left != "" {
				return errors.New(left)
			}
			return nil
		})
	})
}

// TestStoppedLogReader: requests are served when what reads the daemon's log has stopped: a
// pager, a terminal that is held.
func TestStoppedLogReader(t *testing.T) {
	n := node.Start(t, node.Options{
		Config: bridge + "[daemon]\nlog_level = \"debug\"\n",
		Prefix: []string{"sh", "-c", `mkfifo log && exec "$@" 2<>log`, "sh"},
	})
	e := env{T: t, n: n, cri: n.CRI()}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Each is a line, and 64 KiB of them fill the FIFO.
	for range 2000 {
		_, err := e.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "none"}})
		e.must(err)
	}
	e.pull(busybox)
	p := e.pod("one", nil)
	p.start("c", sh("sleep 1000")).stop(0)
	p.remove()
}

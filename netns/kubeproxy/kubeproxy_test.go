package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/nstest"
)

func TestMain(m *testing.M) {
	os.Exit(nstest.Main(m, nstest.Options{Net: true, PID: true, IPC: true, UTS: true, IDs: 65536}))
}

// ruleset is of the form of kube-proxy's, in short.
const ruleset = `
table ip kube-proxy {
	set nodeport-ips { type ipv4_addr; elements = { 192.0.2.7 } }
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.10 . udp . 53 : goto x, 10.96.0.1 . tcp . 443 : goto x,
			192.0.2.7 . tcp . 8080 : goto x, 198.51.100.1 . tcp . 80 : goto x }
	}
	map service-nodeports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 30080 : goto x, udp . 30053 : goto x, sctp . 30100 : goto x }
	}
	chain x { }
}
table ip6 kube-proxy {
	set nodeport-ips { type ipv6_addr; }
	map service-ips { type ipv6_addr . inet_proto . inet_service : verdict; }
	map service-nodeports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 30080 : goto x }
	}
	chain x { }
}
table ip other {
	map service-nodeports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 1 : accept }
	}
}
`

func command(t *testing.T, stdin string, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
}

func TestPorts(t *testing.T) {
	if ports, err := Ports(); err != nil || len(ports) > 0 {
		t.Errorf("without kube-proxy: %v, %v", ports, err)
	}
	command(t, "", "ip", "address", "add", "192.0.2.7/32", "dev", "lo")
	t.Cleanup(func() {
		command(t, "flush ruleset", "nft", "-f", "-")
		command(t, "", "ip", "address", "delete", "192.0.2.7/32", "dev", "lo")
	})
	command(t, ruleset, "nft", "-f", "-")
	ports, err := Ports()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range ports {
		got = append(got, fmt.Sprint(p.Proto, " ", p.At, " ", p.NodePort))
	}
	slices.Sort(got)
	want := []string{"tcp 192.0.2.7:30080 true", "tcp 192.0.2.7:8080 false", "udp 192.0.2.7:30053 true"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	// Of a kube-proxy that begins, not all sets are there.
	command(t, "flush table ip kube-proxy; delete map ip kube-proxy service-ips; delete set ip kube-proxy nodeport-ips", "nft", "-f", "-")
	if ports, err := Ports(); err != nil || len(ports) > 0 {
		t.Errorf("without its sets: %v, %v", ports, err)
	}
}

// TestPortsWhileTheyChange: ports of services that stay are there in each reading, while
// kube-proxy adds others and removes them.
func TestPortsWhileTheyChange(t *testing.T) {
	t.Cleanup(func() { command(t, "flush ruleset", "nft", "-f", "-") })
	const stay, others = 1000, 50
	elements := func(first, n int, what string) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("tcp . %d%s", first+i, what))
		}
		return "{ " + strings.Join(list, ", ") + " }"
	}
	command(t, `table ip kube-proxy {
	set nodeport-ips { type ipv4_addr; elements = { 192.0.2.7 } }
	map service-nodeports { type inet_proto . inet_service : verdict; elements = `+elements(1, stay, " : goto x")+` }
	chain x { }
}`, "nft", "-f", "-")
	ctx, stop := context.WithCancel(t.Context())
	var changes sync.WaitGroup
	changes.Go(func() {
		for ctx.Err() == nil {
			for _, change := range []string{"add", "delete"} {
				what := map[string]string{"add": " : goto x"}[change]
				cmd := exec.CommandContext(ctx, "nft", change, "element", "ip", "kube-proxy", "service-nodeports", elements(40_000, others, what))
				_ = cmd.Run()
			}
		}
	})
	defer changes.Wait()
	defer stop()
	looks := 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		ports, err := Ports()
		if errors.Is(err, ErrChanging) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		looks++
		seen := map[netip.AddrPort]bool{}
		for _, p := range ports {
			if p.At.Port() <= stay {
				seen[p.At] = true
			}
		}
		if len(seen) != stay {
			t.Fatalf("look %d: %d ports of %d that were there all the time", looks, len(seen), stay)
		}
	}
	if looks == 0 {
		t.Error("no look has succeeded")
	}
	t.Logf("%d looks", looks)
}

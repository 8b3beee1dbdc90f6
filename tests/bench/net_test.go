package bench

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

var (
	netSeconds = flag.Int("net-seconds", 3, "how long each throughput is measured")
	netUplinks = flag.String("net-uplinks", "slirp4netns,pasta,gvisor-tap-vsock", "uplinks that TestBenchNet measures")
)

// TestBenchNet measures throughput and latency by each way that packets can take, as
// ratios to the host's loopback in the same run. Run it by 'make bench-net'.
func TestBenchNet(t *testing.T) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Fatalf("%v: run 'make deps'", err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "\n  %-44s %10s %8s   %s\n", "", "Gbit/s", "ratio", "connect / round trip, µs")
	for _, uplink := range strings.Split(*netUplinks, ",") {
		t.Run(uplink, func(t *testing.T) {
			n := node.Start(t, node.Options{Config: "[daemon]\nlog_level = \"warn\"\n[node]\nuplink = \"" + uplink + "\"\ndisable_host_loopback = false\n"})
			b := netBench{t: t, n: n, out: &out}
			b.run(uplink)
		})
	}
	t.Run("pull", func(t *testing.T) { benchPull(t, &out) })
	fmt.Print(out.String())
}

type netBench struct {
	t        *testing.T
	n        *node.Node
	out      *strings.Builder
	loopback float64 // Gbit/s, measured first
}

// run measures all ways of a node. Programs in pods are those of the host, put into
// the pods' network namespaces: no image has them.
func (b *netBench) run(uplink string) {
	port := int(freePorts(b.t, 4))
	server := b.pod("server", port)
	client := b.pod("client", 0)
	host := node.HostIPv4(b.t)

	b.both("loopback of the host", onHost{}, onHost{}, "127.0.0.1", port+1, port+1)
	for _, way := range []struct {
		name, address string
		from, to      place
		port          int
	}{
		{"pod to pod", server.ips[0], client, server, 5201},
		{"pod to pod, IPv6", server.ips[1], client, server, 5201},
		{"pod to host, through " + uplink, host, client, onHost{}, port + 2},
		{"host to pod, through a host port", "127.0.0.1", onHost{}, server, port},
	} {
		serve := way.port
		if _, inPod := way.to.(podPlace); inPod {
			serve = 5201
		}
		b.both(way.name, way.from, way.to, way.address, serve, way.port)
	}
}

// place is where a program runs: the host's network namespace or a pod's.
type place interface{ argv(args ...string) []string }

type onHost struct{}

func (onHost) argv(args ...string) []string { return args }

type podPlace struct {
	n      *node.Node
	id     string
	ips    []string // IPv4, IPv6
	subpod string
}

func (p podPlace) argv(args ...string) []string {
	return append([]string{p.subpod, "nsenter", "--", "nsenter", "--net=" + p.n.RunDir + "/pods/" + p.id + "/net", "--"}, args...)
}

func (b *netBench) pod(name string, hostPort int) podPlace {
	b.t.Helper()
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ownPID}},
	}
	if hostPort > 0 {
		config.PortMappings = []*runtimeapi.PortMapping{{HostPort: int32(hostPort), ContainerPort: 5201}}
	}
	resp, err := b.n.CRI().RunPodSandbox(b.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		b.t.Fatal(err)
	}
	status, err := b.n.CRI().PodSandboxStatus(b.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: resp.PodSandboxId})
	if err != nil {
		b.t.Fatal(err)
	}
	ips := []string{status.Status.Network.Ip}
	for _, more := range status.Status.Network.AdditionalIps {
		ips = append(ips, more.Ip)
	}
	return podPlace{b.n, resp.PodSandboxId, ips, node.Path(b.t, node.Subpod)}
}

func (b *netBench) both(name string, from, to place, address string, serve, port int) {
	b.t.Helper()
	stop := b.background(to.argv("iperf3", "--server", "--one-off", "--port", strconv.Itoa(serve))...)
	gbits := b.iperf(from, address, port)
	stop()
	b.report(name, gbits, b.latency(from, to, address, serve, port))
}

func (b *netBench) report(name string, gbits float64, took [2]time.Duration) {
	if b.loopback == 0 {
		b.loopback = gbits
	}
	fmt.Fprintf(b.out, "  %-44s %10.2f %8.2f   %.0f / %.0f\n", name, gbits, gbits/b.loopback,
		float64(took[0].Nanoseconds())/1000, float64(took[1].Nanoseconds())/1000)
}

// background runs a program until stop.
func (b *netBench) background(argv ...string) (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	cmd := b.n.Command(ctx, argv[0], argv[1:]...)
	// A program in a pod is not our child: the end of its input is its end.
	input, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // until it listens: a connection too early ends "iperf3 --one-off"
	return func() {
		input.Close()
		time.Sleep(100 * time.Millisecond)
		cancel()
		_ = cmd.Wait()
	}
}

// iperf returns Gbit/s. The server may not listen yet.
func (b *netBench) iperf(from place, address string, port int, more ...string) float64 {
	b.t.Helper()
	var last error
	for range 50 {
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Duration(*netSeconds+20)*time.Second)
		argv := from.argv("iperf3", "--client", address, "--port", strconv.Itoa(port), "--time", strconv.Itoa(*netSeconds), "--json")
		argv = append(argv, more...)
		out, err := b.n.Command(ctx, argv[0], argv[1:]...).Output()
		cancel()
		var result struct {
			Error string
			End   struct {
				Received struct {
					Bits float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		if json.Unmarshal(out, &result) == nil && result.Error == "" && result.End.Received.Bits > 0 {
			return result.End.Received.Bits / 1e9
		}
		last = fmt.Errorf("%w: %s", err, result.Error)
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatalf("iperf3 to %s:%d: %v", address, port, last)
	return 0
}

// latency returns the medians of a TCP connect and of a request with its answer, one
// byte each. Both ends are this test binary.
func (b *netBench) latency(from, to place, address string, serve, port int) (took [2]time.Duration) {
	b.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	stop := b.background(to.argv(exe, echoArg, strconv.Itoa(serve))...)
	defer stop()
	var last error
	for range 50 {
		argv := from.argv(exe, askArg, net.JoinHostPort(address, strconv.Itoa(port)))
		out, err := b.n.Command(b.t.Context(), argv[0], argv[1:]...).Output()
		if _, scanErr := fmt.Sscan(string(out), &took[0], &took[1]); err == nil && scanErr == nil {
			return took
		}
		last = err
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatalf("latency to %s:%d: %v", address, port, last)
	return took
}

// Arguments by which the test binary becomes an end of a latency measurement.
const (
	echoArg = "net-echo"
	askArg  = "net-ask"
)

func echo(port string) error {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(c, c)
			c.Close()
		}()
	}
}

// ask prints the medians of a connect and of a round trip, in nanoseconds with unit.
func ask(addr string) error {
	const rounds = 200
	var connect, trip []time.Duration
	buf := make([]byte, 1)
	for range rounds {
		begin := time.Now()
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return err
		}
		connect = append(connect, time.Since(begin))
		// The first also waits for whoever forwards to reach the other end.
		for i := range 2 {
			begin = time.Now()
			_ = c.SetDeadline(begin.Add(5 * time.Second))
			if _, err := c.Write(buf); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				return err
			}
			if i > 0 {
				trip = append(trip, time.Since(begin))
			}
		}
		c.Close()
	}
	fmt.Println(median(connect).Nanoseconds(), median(trip).Nanoseconds())
	return nil
}

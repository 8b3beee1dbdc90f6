package bridge

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

func BenchmarkPinSetup(b *testing.B)         { benchmark(b, true, nil) }
func BenchmarkTeardown(b *testing.B)         { benchmark(b, false, nil) }
func BenchmarkPinSetupTwoPorts(b *testing.B) { benchmark(b, true, []uint16{80, 443}) }
func BenchmarkTeardownTwoPorts(b *testing.B) { benchmark(b, false, []uint16{80, 443}) }

// benchmark times either half of a pod's life: pins and network, or teardown and
// removal of the pins. What the kernel does afterwards is not counted.
func benchmark(b *testing.B, up bool, ports []uint16) {
	w := newWorld(b)
	n := w.bridge(Options{})
	ctx := context.Background()
	for i := 0; b.Loop(); i++ {
		if !up {
			b.StopTimer()
		}
		pod := netns.Pod{ID: nettest.PodID(fmt.Sprint(i))}
		for _, p := range ports {
			pod.Ports = append(pod.Ports, netns.PortMapping{Proto: "tcp", HostPort: p, ContainerPort: p})
		}
		dir := filepath.Join(w.Dir, pod.ID)
		pins, err := netns.Pin(ctx, netns.PinSpec{Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "pod"})
		if err != nil {
			b.Fatal(err)
		}
		pod.NetNS = pins.Net
		if _, err := n.Setup(ctx, pod); err != nil {
			b.Fatal(err)
		}
		if up {
			b.StopTimer()
		} else {
			b.StartTimer()
		}
		if err := n.Teardown(ctx, pod.ID); err != nil {
			b.Fatal(err)
		}
		if err := netns.Unpin(dir); err != nil {
			b.Fatal(err)
		}
		if up {
			b.StartTimer()
		}
	}
}

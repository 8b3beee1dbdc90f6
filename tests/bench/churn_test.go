package bench

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

var churn = flag.Int("churn", 100, "pods that TestNetChurn starts and stops, at least 40")

// churnConcurrency is how many pods come and go at the same time.
const churnConcurrency = 8

// TestNetChurn starts and stops pods in a loop, each with two host ports: nothing of
// them is left, and the last take as long as the first.
func TestNetChurn(t *testing.T) {
	n := node.Start(t, node.Options{Config: "[daemon]\nlog_level = \"warn\"\n"})
	cri := n.CRI()
	first := freePorts(t, churnConcurrency)
	cycle := func(name string, port int32) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		resp, err := cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "churn", Uid: name},
			PortMappings: []*runtimeapi.PortMapping{
				{Protocol: runtimeapi.Protocol_TCP, HostPort: port, ContainerPort: 80},
				{Protocol: runtimeapi.Protocol_UDP, HostPort: port, ContainerPort: 80},
			},
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ownPID}},
		}})
		if err != nil {
			return 0, err
		}
		if _, err := cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: resp.PodSandboxId}); err != nil {
			return 0, err
		}
		_, err = cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: resp.PodSandboxId})
		return time.Since(begin), err
	}
	for i := range 3 * churnConcurrency { // the bridge, and the threads of the server
		if _, err := cycle(fmt.Sprint("warm-up-", i), first); err != nil {
			t.Fatal(err)
		}
	}
	before := n.Look()

	took := make([]time.Duration, *churn)
	next := make(chan int)
	var workers sync.WaitGroup
	begin := time.Now()
	for w := range churnConcurrency {
		workers.Go(func() {
			for i := range next {
				var err error
				if took[i], err = cycle(fmt.Sprint("pod-", i), first+int32(w)); err != nil {
					t.Errorf("pod %d: %v", i, err)
				}
			}
		})
	}
	for i := range *churn {
		next <- i
	}
	close(next)
	workers.Wait()
	all := time.Since(begin)
	n.NothingLeft(before)
	if claims, _ := n.TryEnter("sh", "-c", "ls "+n.RunDir+"/net/addresses"); strings.TrimSpace(claims) != "" {
		t.Errorf("addresses are left: %s", claims)
	}
	part := max(*churn/10, 20)
	head, tail := median(took[:part]), median(took[len(took)-part:])
	fmt.Printf("\n%d pods at concurrency %d in %.1f s; median of one: first %d %.1f ms, last %d %.1f ms\n",
		*churn, churnConcurrency, all.Seconds(), part, ms(head), part, ms(tail))
	// Twice is more than what a busy machine makes of two runs in a row, and far less
	// than what a list that grows would. A short run says nothing.
	if *churn >= 1000 && tail > 2*head+5*time.Millisecond {
		t.Errorf("pods get slower: the first took %v, the last %v", head, tail)
	}
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// freePorts returns the first of so many ports in a row that are free. Others may look for
// some at the same moment: it begins anywhere.
func freePorts(t *testing.T, count int) int32 {
	t.Helper()
next:
	for range 1000 {
		first := 20000 + count*rand.IntN(10000/count)
		for port := first; port < first+count; port++ {
			l, err := net.Listen("tcp", fmt.Sprint(":", port))
			if err != nil {
				continue next
			}
			l.Close()
		}
		return int32(first)
	}
	t.Fatal("no free ports")
	return 0
}

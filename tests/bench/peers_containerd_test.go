package bench

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/containerd"
)

// measureContainerd measures containerd. It has no cgroups here, as nobody else has.
func measureContainerd(t *testing.T, reg string, images map[string][]string) *peer {
	if _, err := os.Stat(filepath.Join(containerd.Bin(), "containerd")); err != nil {
		t.Logf("containerd is left out: %v", err)
		return nil
	}
	o := containerd.Options{Registry: reg, Port: int(freePorts(t, 4))}
	for _, refs := range images {
		o.Images = append(o.Images, refs[0]) // one registry has them all
	}
	c := containerd.Start(t, o)
	p := &criPeer{
		peer:   &peer{Name: "containerd " + containerd.Version(t), Took: series{}, Ways: map[string]wayTook{}},
		bench:  bench{cri: c.Client(t), logs: filepath.Join(c.Dir, "logs"), ref: containerd.Reaches(reg + "/docker.io/library/busybox:latest")},
		pid:    c.PID,
		images: containerd.Reaches,
		inPod: func(t *testing.T, id string) place {
			return criPlace{c.Child(t), netnsOf(t, c.Client(t), id)}
		},
		host: containerd.Host,
		port: o.Port,
	}
	if _, err := p.cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: p.image()}}); err != nil {
		t.Fatalf("%v\n%s", err, c.Log())
	}
	p.measure(t, images)
	p.scale(t, *otherScale)
	return p.peer
}

// criPlace is a pod's network namespace.
type criPlace struct {
	child int
	netns string
}

func (p criPlace) argv(args ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(p.child), "--user", "--preserve-credentials", "--mount", "--net", "--",
		"nsenter", "--net=" + p.netns, "--"}, args...)
}

package pod

import (
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// FuzzNames: no two objects with other metadata have one name.
func FuzzNames(f *testing.F) {
	f.Add("ns", "n", "u", "ns", "n, attempt 1)", "u", uint32(1))
	f.Add("a/b", "c", "d", "a", "b/c", "d", uint32(0))
	f.Fuzz(func(t *testing.T, namespace, name, uid, namespace2, name2, uid2 string, attempt uint32) {
		a := &runtimeapi.PodSandboxMetadata{Namespace: namespace, Name: name, Uid: uid, Attempt: attempt}
		b := &runtimeapi.PodSandboxMetadata{Namespace: namespace2, Name: name2, Uid: uid2, Attempt: attempt}
		if !proto.Equal(a, b) && podName(a) == podName(b) {
			t.Errorf("%v and %v have one name: %s", a, b, podName(a))
		}
		c := &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}
		d := &runtimeapi.ContainerMetadata{Name: name2, Attempt: attempt}
		if name != name2 && containerName("pod", c) == containerName("pod", d) {
			t.Errorf("%v and %v have one name", c, d)
		}
	})
}

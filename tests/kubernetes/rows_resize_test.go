package kubernetes

import (
	"errors"
	"strings"
)

// resized is the pod that is resized.
const resized = "resized"

// resize asks for other limits of the pod.
func (c *cluster) resize() (string, error) {
	return c.try("patch", "pod", resized, "--subresource=resize", "-p",
		`{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"200m","memory":"48Mi"},"limits":{"cpu":"300m","memory":"96Mi"}}}]}}`)
}

// delegated says whether the node has the controllers that resizing takes, as "subpod
// kubernetes check" says.
func (c *cluster) delegated() bool {
	c.t.Helper()
	out, _ := c.Subpod("kubernetes", "check") // not 0 for what does not matter here, too
	if strings.Contains(out, "are delegated") {
		return true
	}
	for _, want := range []string{"not delegated: ", "resizing a running pod makes a kubelet of 1.37 panic", "resize.yaml"} {
		if !strings.Contains(out, want) {
			c.t.Fatalf("subpod kubernetes check has no %q:\n%s", want, out)
		}
	}
	return false
}

func (c *cluster) makeResized() {
	c.t.Helper()
	c.apply(pod(resized, asleep, "resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}", ""))
	c.ready(resized)
}

var _ = add(map[string]func(*cluster){
	"in-place-resize": func(c *cluster) {
		if !c.delegated() {
			c.t.Skip("no cgroup controllers are delegated on this machine: tests/vm asserts the runtime's part of it")
		}
		c.makeResized()
		out, err := c.resize()
		if err != nil {
			c.t.Fatalf("%v: %s", err, out)
		}
		c.eventually(func() error { return c.says("30000 100000", resized, "cat", "/sys/fs/cgroup/cpu.max") })
		c.eventually(func() error { return c.says("100663296", resized, "cat", "/sys/fs/cgroup/memory.max") })
		c.eventually(func() error {
			return c.is("300m 96Mi 0", "get", "pod", resized, "-o",
				"jsonpath={.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].restartCount}")
		})
		c.kubectl("delete", "pod", resized)
	},
	"in-place-resize-refused": func(c *cluster) {
		if c.delegated() {
			c.t.Skip("cgroup controllers are delegated on this machine: nothing is refused")
		}
		kubelet := func() string {
			pid, err := c.in("", "pgrep", "-x", "kubelet")
			must(c.t, err)
			return pid
		}
		before := kubelet()
		c.makeResized()
		c.kubectl("apply", "-f", "/etc/kubernetes/subpod/resize.yaml")
		// Until the API server knows the policy nothing may be asked that the kubelet would do:
		// a dry run is.
		c.eventually(func() error {
			_, err := c.try("patch", "pod", resized, "--subresource=resize", "--dry-run=server", "-p",
				`{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"300m"}}}]}}`)
			return refused(err)
		})
		_, err := c.resize()
		must(c.t, refused(err))
		c.kubectl("label", "pod", resized, "other=updates") // are not refused
		c.ready(resized)
		c.nodeReady(c.name)
		if after := kubelet(); after != before {
			c.t.Errorf("the kubelet was process %s and is %s", before, after)
		}
		c.kubectl("delete", "pod", resized)
	},
})

// refused returns an error unless one is the policy's.
func refused(err error) error {
	if err == nil {
		return errors.New("the resize is not refused")
	}
	if !strings.Contains(err.Error(), "cannot resize pods in place") {
		return err
	}
	return nil
}

package fields

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestAsKubectlShowsIt looks at what a kubelet hands on to people.
func TestAsKubectlShowsIt(t *testing.T) {
	const one, other = "registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9" // one image
	startWith(t, []string{one, other}, []string{""}, func(e env) {
		v, err := e.cri.Version(e.Context(), &runtimeapi.VersionRequest{})
		e.must(err)
		if shown := v.RuntimeName + "://" + v.RuntimeVersion; !regexp.MustCompile(`^subpod://\d+\.\d+\.\d+([-+]|$)`).MatchString(shown) {
			e.Errorf("the node shows the runtime version %s", shown)
		}
		p := e.pod("shown", func(c *podConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD })
		e.equal("runtime handler of a request that names none", p.status().RuntimeHandler, "")
		list, err := e.cri.ListPodSandbox(e.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: p.id}})
		e.must(err)
		e.equal("runtime handler in the list", list.Items[0].RuntimeHandler, "")
		p.images(one, other)
		p.inspected()
		_, err = p.tryCreate("privileged", secure(func(s *security) { s.Privileged = true }))
		e.refused("a privileged container in a pod sandbox that is not", err, codes.InvalidArgument, "linux.security_context.privileged")
		e.hostnameOfNode()
	})
}

// images makes containers of one image by both of its names.
func (p *pod) images(names ...string) {
	p.Helper()
	img, err := p.cri.ImageStatus(p.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: names[0]}})
	p.must(err)
	for i, name := range names {
		// A kubelet sends the ID, and the name beside it.
		c := p.create("image-"+string(rune('a'+i)), image(img.Image.Id), func(c *ctrConfig) { c.Image.UserSpecifiedImage = name; c.Command = []string{"/pause"} })
		s := c.status()
		p.equal("image of "+name, s.Image.Image, name)
		if repository, _, _ := strings.Cut(s.ImageRef, "@"); repository+":3.9" != name {
			p.Errorf("image_ref of %s is %s", name, s.ImageRef)
		}
	}
}

// inspected finds process and namespaces where tools look for them (crictl inspectp).
func (p *pod) inspected() {
	p.Helper()
	c := p.start("inspected", idle())
	type info struct {
		PID         int
		RuntimeSpec struct {
			Linux struct{ Namespaces []struct{ Type, Path string } }
		}
	}
	read := func(text string) (out info) {
		p.must(json.Unmarshal([]byte(text), &out))
		return out
	}
	ps, err := p.cri.PodSandboxStatus(p.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	p.must(err)
	cs, err := p.cri.ContainerStatus(p.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	p.must(err)
	link := map[string]string{"network": "net", "ipc": "ipc", "uts": "uts"}
	for what, i := range map[string]info{"pod sandbox": read(ps.Info["info"]), "container": read(cs.Info["info"])} {
		if i.PID == 0 {
			p.Errorf("verbose status of the %s: no pid", what)
		}
		found := 0
		for _, ns := range i.RuntimeSpec.Linux.Namespaces {
			if name := link[ns.Type]; name != "" {
				found++
				inode := strings.TrimSpace(p.n.Enter("stat", "-L", "-c", "%i", ns.Path))
				p.equal(what+": "+ns.Type+" namespace", name+":["+inode+"]", c.exec("readlink", "/proc/self/ns/"+name))
			}
		}
		p.equal(what+": namespaces in runtimeSpec", found, len(link))
	}
	c.stop(0)
	cs, err = p.cri.ContainerStatus(p.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	p.must(err)
	p.equal("pid of a container that has ended", read(cs.Info["info"]).PID, 0)
}

// hostnameOfNode: a pod on the node's network may have a hostname, and shares the node's
// UTS namespace all the same.
func (e env) hostnameOfNode() {
	e.Helper()
	p := e.pod("on-node", func(c *podConfig) { podNamespaces(c).Network, c.Hostname = nsNode, "asked-for" })
	c := p.start("c", idle())
	e.equal("hostname", c.exec("hostname"), strings.TrimSpace(e.n.Enter("hostname")))
	e.equal("/etc/hostname and $HOSTNAME", c.sh("cat /etc/hostname; echo $HOSTNAME"), "asked-for\nasked-for")
}

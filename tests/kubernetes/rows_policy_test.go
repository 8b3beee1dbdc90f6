package kubernetes

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// addon returns the image's name of what images.sh --addons has made, and its archive.
func (c *cluster) addon(program string) (name, archive string) {
	c.t.Helper()
	out, err := exec.CommandContext(c.t.Context(), filepath.Join(node.Tree(), "tests/kubernetes/build.sh"), "--addons").Output()
	must(c.t, err)
	for _, name := range strings.Fields(string(out)) {
		if strings.Contains(name, "/"+program+":") {
			return name, filepath.Join(filepath.Dir(*programs), "addons", program+".tar")
		}
	}
	c.t.Fatalf("no image of %s: %s", program, out)
	return "", ""
}

// kubeRouter is the manifest of kube-router's documentation, of what enforces policies
// only, without the part that installs a CNI plugin.
func kubeRouter(image string) string {
	return `apiVersion: v1
kind: ServiceAccount
metadata: {name: kube-router, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kube-router}
rules:
- {apiGroups: [""], resources: [namespaces, pods, services, nodes, endpoints], verbs: [list, get, watch]}
- {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [list, get, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, get, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kube-router}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kube-router}
subjects: [{kind: ServiceAccount, name: kube-router, namespace: kube-system}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-router, namespace: kube-system, labels: {k8s-app: kube-router}}
spec:
  selector: {matchLabels: {k8s-app: kube-router}}
  template:
    metadata: {labels: {k8s-app: kube-router}}
    spec:
      priorityClassName: system-node-critical
      serviceAccountName: kube-router
      hostNetwork: true
      hostPID: true
      tolerations: [{operator: Exists}]
      containers:
      - name: kube-router
        image: ` + image + `
        imagePullPolicy: IfNotPresent
        args: [--run-router=false, --run-firewall=true, --run-service-proxy=false]
        securityContext: {privileged: true}
        env:
        - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        livenessProbe: {httpGet: {path: /healthz, port: 20244}, initialDelaySeconds: 10, periodSeconds: 3}
        volumeMounts:
        - {name: lib-modules, mountPath: /lib/modules, readOnly: true}
        - {name: xtables-lock, mountPath: /run/xtables.lock}
      volumes:
      - {name: lib-modules, hostPath: {path: /lib/modules}}
      - {name: xtables-lock, hostPath: {path: /run/xtables.lock, type: FileOrCreate}}
`
}

// The pods that policies are about: a server with two ports, and two that ask it, of which
// one is its friend.
const (
	policyServer = "policy-server"
	friend       = "policy-friend"
	stranger     = "policy-stranger"
)

// policy is a NetworkPolicy for a pod.
func policy(name, pod, spec string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\nspec: {podSelector: {matchLabels: {app: %s}}, %s}\n", name, pod, spec)
}

// reaches returns an error unless a pod reaches a port of an address.
func (c *cluster) reaches(pod, address string, port int) error {
	out, err := c.exec(pod, "wget", "-T", "3", "-qO-", fmt.Sprintf("http://%s:%d/", address, port))
	if err == nil && out != fmt.Sprint(port) {
		err = fmt.Errorf("%s: port %d of %s answers %q", pod, port, address, out)
	}
	return err
}

// traffic waits until each pod reaches those ports of the server that it is to reach, and
// no others, and sees that it stays so.
func (c *cluster) traffic(want map[string][2]bool) {
	c.t.Helper()
	address := c.podIP(policyServer)
	asWanted := func() error {
		for pod, ports := range want {
			for i, open := range ports {
				err := c.reaches(pod, address, 8080+i)
				if open && err != nil {
					return err
				}
				if !open && err == nil {
					return fmt.Errorf("%s reaches port %d", pod, 8080+i)
				}
			}
		}
		return nil
	}
	c.eventually(asWanted)
	for range 3 {
		time.Sleep(300 * time.Millisecond)
		must(c.t, asWanted())
	}
}

// policyRows: kube-router comes with the first of them, and goes with the last.
var _ = add(map[string]func(*cluster){
	"network-policy": func(c *cluster) {
		image, archive := c.addon("kube-router")
		c.subpod("load", "-i", archive)
		c.apply(kubeRouter(image))
		c.apply(pod(policyServer, "mkdir /a /b; echo 8080 >/a/index.html; echo 8081 >/b/index.html; httpd -p 8080 -h /a; httpd -p 8081 -h /b; "+asleep,
			"readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}", ""))
		c.apply(pod(friend, asleep, "", ""))
		c.apply(pod(stranger, asleep, "", ""))
		c.ready(policyServer, friend, stranger)
		c.eventually(func() error {
			return c.is("1", "-n", "kube-system", "get", "daemonset", "kube-router", "-o", "jsonpath={.status.numberReady}")
		})
		c.traffic(map[string][2]bool{friend: {true, true}, stranger: {true, true}})
		// A controller that does nothing would pass that, and all that allows.
		c.eventually(func() error {
			out, err := c.in("", "nft", "list", "tables")
			if err == nil && !strings.Contains(out, "table ip filter") {
				err = errors.New("kube-router has made no rules: " + out)
			}
			return err
		})
	},
	"network-policy-deny": func(c *cluster) {
		c.apply(policy("deny", policyServer, "policyTypes: [Ingress]"))
		c.traffic(map[string][2]bool{friend: {}, stranger: {}})
		c.ready(policyServer) // the kubelet's probe comes from the node
	},
	"network-policy-label": func(c *cluster) {
		c.apply(policy("friends", policyServer, "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: "+friend+"}}}]}]"))
		c.traffic(map[string][2]bool{friend: {true, true}, stranger: {}})
	},
	"network-policy-port": func(c *cluster) {
		c.apply(policy("friends", policyServer, "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: "+friend+"}}}], ports: [{port: 8081}]}]"))
		c.traffic(map[string][2]bool{friend: {false, true}, stranger: {}})
	},
	"network-policy-service": func(c *cluster) {
		c.apply("apiVersion: v1\nkind: Service\nmetadata: {name: policy}\nspec: {selector: {app: " + policyServer + "}, ports: [{name: a, port: 8080}, {name: b, port: 8081}]}\n")
		ip := c.kubectl("get", "service", "policy", "-o", "jsonpath={.spec.clusterIP}")
		c.eventually(func() error { return c.reaches(friend, ip, 8081) })
		for pod, port := range map[string]int{friend: 8080, stranger: 8081} {
			if c.reaches(pod, ip, port) == nil {
				c.t.Errorf("%s reaches port %d by the service", pod, port)
			}
		}
		c.kubectl("delete", "service", "policy")
	},
	"network-policy-new-pod": func(c *cluster) {
		c.apply(pod("policy-late", asleep, "", ""))
		c.ready("policy-late")
		c.traffic(map[string][2]bool{"policy-late": {}, friend: {false, true}})
		c.kubectl("label", "pod", "policy-late", "app="+friend, "--overwrite")
		c.traffic(map[string][2]bool{"policy-late": {false, true}})
		c.kubectl("delete", "pod", "policy-late")
	},
	"network-policy-egress": func(c *cluster) {
		c.kubectl("delete", "networkpolicy", "friends", "deny")
		c.apply(policy("egress", stranger, "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: "+policyServer+"}}}], ports: [{port: 8080}]}]"))
		c.traffic(map[string][2]bool{friend: {true, true}, stranger: {true, false}})
		if out, err := c.exec(stranger, "nc", "-w", "3", "10.96.0.1", "443"); err == nil {
			c.t.Errorf("the API server is reached: %s", out)
		}
	},
	"network-policy-removed": func(c *cluster) {
		c.kubectl("delete", "networkpolicy", "--all")
		c.traffic(map[string][2]bool{friend: {true, true}, stranger: {true, true}})
		c.kubectl("delete", "pod", policyServer, friend, stranger, "--wait=false")
		c.kubectl("-n", "kube-system", "delete", "daemonset", "kube-router")
	},
})

var _ = addHosts(map[string]func(*cluster){
	"policy-remote": func(c *cluster) {
		image, archive := c.addon("kube-router")
		c.subpod("load", "-i", archive)
		for n := 2; n <= hosts; n++ {
			_, err := on(n, "subpod", "load", "-i", archive)
			must(c.t, err)
		}
		c.apply(kubeRouter(image))
		c.eventually(func() error {
			return c.is(fmt.Sprint(hosts), "-n", "kube-system", "get", "daemonset", "kube-router", "-o", "jsonpath={.status.numberReady}")
		})
		c.apply(policy("remote", "spread", "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: "+client(1)+"}}}]}]"))
		c.eventually(func() error {
			for to := 2; to <= hosts; to++ {
				if err := c.seen(1, to); err != nil {
					return err
				}
				if c.seen(5-to, to) == nil {
					return fmt.Errorf("the client of host %d reaches the backend of host %d", 5-to, to)
				}
			}
			return nil
		})
		c.kubectl("delete", "networkpolicy", "remote")
		c.everyPod()
		c.kubectl("-n", "kube-system", "delete", "daemonset", "kube-router")
	},
})

package kubernetes

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What the rows' pods run.
const (
	busybox = "docker.io/library/busybox:latest"
	agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
)

// rows are the assertions of table.txt, by the name of their row.
var rows = map[string]func(*cluster){}

// add adds a group of rows.
func add(group map[string]func(*cluster)) struct{} {
	for name, assert := range group {
		rows[name] = assert
	}
	return struct{}{}
}

// pod is a manifest of a pod that runs a shell script of busybox. extra is YAML of its
// spec, container of its container.
func pod(name, script, container, extra string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec:\n  terminationGracePeriodSeconds: 1\n", name, name)
	indent(&b, extra, "  ")
	fmt.Fprintf(&b, "  containers:\n  - name: c\n    image: %s\n    imagePullPolicy: IfNotPresent\n    command: [sh, -c, %q]\n", busybox, script)
	indent(&b, container, "    ")
	return b.String()
}

func indent(b *strings.Builder, text, by string) {
	for line := range strings.Lines(text) {
		b.WriteString(by + strings.TrimSuffix(line, "\n") + "\n")
	}
}

// asleep is the script of a pod that waits for what is done to it.
const asleep = "trap 'exit 0' TERM; sleep 36000 & wait"

var _ = add(map[string]func(*cluster){
	"node-ready": func(c *cluster) {
		c.eventually(func() error {
			return c.is("True", "get", "node", c.name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		})
	},
	"node-version": func(c *cluster) {
		c.eventually(func() error {
			return c.has("subpod://", "get", "node", c.name, "-o", "jsonpath={.status.nodeInfo.containerRuntimeVersion}")
		})
	},
	"node-pod-cidr": func(c *cluster) {
		c.eventually(func() error {
			return c.has("10.244.", "get", "node", c.name, "-o", "jsonpath={.spec.podCIDR}")
		})
	},
	"control-plane": func(c *cluster) {
		for _, program := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
			c.eventually(func() error {
				return c.is("Running Node", "-n", "kube-system", "get", "pod", program+"-"+c.name, "-o",
					"jsonpath={.status.phase} {.metadata.ownerReferences[0].kind}")
			})
		}
	},
	"kube-proxy": func(c *cluster) {
		c.eventually(func() error {
			return c.is("1", "-n", "kube-system", "get", "daemonset", "kube-proxy", "-o", "jsonpath={.status.numberReady}")
		})
	},
	"coredns": func(c *cluster) {
		c.eventually(func() error {
			return c.is("2", "-n", "kube-system", "get", "deployment", "coredns", "-o", "jsonpath={.status.availableReplicas}")
		})
	},

	"deployment": func(c *cluster) {
		c.apply(web)
		c.apply(pod("client", asleep, "", ""))
		c.replicas(2)
		c.ready("client")
	},
	"service-from-pod": func(c *cluster) {
		c.backends(2, func() (string, error) {
			return c.exec("client", "wget", "-T", "5", "-qO-", "http://"+c.serviceIP()+"/hostname")
		})
	},
	"service-from-node": func(c *cluster) {
		c.backends(2, func() (string, error) { return c.get("http://" + c.serviceIP() + "/hostname") })
	},
	"node-port": func(c *cluster) {
		c.backends(2, func() (string, error) { return c.get("http://" + c.nodeIP() + ":30080/hostname") })
	},
	"node-port-from-pod": func(c *cluster) {
		c.backends(2, func() (string, error) {
			return c.exec("client", "wget", "-T", "5", "-qO-", "http://"+c.nodeIP()+":30080/hostname")
		})
	},
	"hairpin": func(c *cluster) {
		one := strings.Fields(c.kubectl("get", "pod", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"))[0]
		c.backends(2, func() (string, error) {
			return c.exec(one, "/agnhost", "connect", "--timeout=5s", c.serviceIP()+":80")
		}, "")
	},
	"api-from-pod": func(c *cluster) {
		c.eventually(func() error {
			return c.says("ok", "client", "sh", "-c", "wget -T 5 -qO- --no-check-certificate https://10.96.0.1/readyz 2>/dev/null || nc -w 3 10.96.0.1 443 </dev/null && echo ok")
		})
	},
	"scale-up":   func(c *cluster) { c.kubectl("scale", "deployment/web", "--replicas=4"); c.replicas(4) },
	"scale-down": func(c *cluster) { c.kubectl("scale", "deployment/web", "--replicas=2"); c.replicas(2) },
	"rolling-update": func(c *cluster) {
		c.kubectl("set", "env", "deployment/web", "X=1")
		c.eventually(func() error {
			return c.is("4 4", "get", "deployment", "web", "-o", "jsonpath={.status.updatedReplicas} {.status.availableReplicas}")
		})
	},
	"rollback": func(c *cluster) {
		c.kubectl("rollout", "undo", "deployment/web")
		c.eventually(func() error {
			return c.is("4 4", "get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env} {.status.updatedReplicas} {.status.availableReplicas}")
		})
	},
	"dns-service": func(c *cluster) {
		c.eventually(func() error {
			out, err := c.exec("client", "nslookup", "web.default.svc.cluster.local")
			if err == nil && !strings.Contains(out, c.serviceIP()) {
				err = errors.New(out)
			}
			return err
		})
	},
	"dns-short-name": func(c *cluster) {
		c.eventually(func() error {
			out, err := c.exec("client", "wget", "-T", "5", "-qO-", "http://web/hostname")
			if err == nil && !strings.HasPrefix(out, "web-") {
				err = errors.New(out)
			}
			return err
		})
	},
	"dns-headless": func(c *cluster) {
		c.apply("apiVersion: v1\nkind: Service\nmetadata: {name: direct}\nspec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}\n")
		ips := strings.Fields(c.kubectl("get", "pod", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))
		c.eventually(func() error {
			out, err := c.exec("client", "nslookup", "direct.default.svc.cluster.local")
			if err == nil && slices.ContainsFunc(ips, func(ip string) bool { return !strings.Contains(out, ip) }) {
				err = fmt.Errorf("not all of %q: %s", ips, out)
			}
			return err
		})
	},
	"image-name": func(c *cluster) {
		c.eventually(func() error {
			return c.is(busybox, "get", "pod", "client", "-o", "jsonpath={.status.containerStatuses[0].image}")
		})
	},
	"image-id": func(c *cluster) {
		c.eventually(func() error {
			return c.has("docker.io/library/busybox@sha256:", "get", "pod", "client", "-o", "jsonpath={.status.containerStatuses[0].imageID}")
		})
	},
})

// web is a Deployment of two and its services.
const web = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: ` + agnhost + `
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`

func (c *cluster) replicas(n int) {
	c.t.Helper()
	want := strconv.Itoa(n)
	c.eventually(func() error {
		return c.is(want+" "+want, "get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas} {.status.replicas}")
	})
}

// backends asks until as many have answered, by names that begin with "web-" or the one given.
func (c *cluster) backends(n int, ask func() (string, error), prefix ...string) {
	c.t.Helper()
	seen := map[string]bool{}
	if len(prefix) > 0 { // a connection that succeeds says nothing
		n, prefix = 1, prefix[:1]
	} else {
		prefix = []string{"web-"}
	}
	c.eventually(func() error {
		name, err := ask()
		if err != nil {
			return err
		}
		if !strings.HasPrefix(name, prefix[0]) {
			return fmt.Errorf("%q answers", name)
		}
		if seen[name] = true; len(seen) < n {
			return fmt.Errorf("only %v", seen)
		}
		return nil
	})
}

// get fetches a URL in the node.
func (c *cluster) get(url string) (string, error) {
	return c.in("", "curl", "-sS", "-f", "--max-time", "5", url)
}

func (c *cluster) serviceIP() string {
	c.t.Helper()
	return c.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
}

func (c *cluster) nodeIP() string {
	c.t.Helper()
	return c.kubectl("get", "node", c.name, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
}

package kubernetes

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// on each host a backend and a client: web-hostN and clientN.
func spread(n int) string {
	return pod("client"+fmt.Sprint(n), "mkdir /w; head -c 20000000 /dev/urandom >/w/large; httpd -p 8000 -h /w; "+asleep, "", "nodeName: "+hostName(n)) +
		fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: web-%s, labels: {app: spread}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: %s
    args: [netexec, --http-port=8080]
    readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
`, hostName(n), agnhost)
}

const spreadService = `apiVersion: v1
kind: Service
metadata: {name: spread}
spec: {type: NodePort, selector: {app: spread}, ports: [{port: 80, targetPort: 8080, nodePort: 30090}]}
`

func client(n int) string  { return fmt.Sprintf("client%d", n) }
func backend(n int) string { return "web-" + hostName(n) }

func (c *cluster) podIP(name string) string {
	c.t.Helper()
	return c.kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}")
}

// seenAs waits until the backend of a host sees what asks it at a URL as coming from an address.
func (c *cluster) seenAs(address, url string, ask func(url string) (string, error)) {
	c.t.Helper()
	c.eventually(func() error {
		out, err := ask(url + "/clientip")
		if err == nil && !strings.HasPrefix(out, address+":") {
			err = fmt.Errorf("%s sees %q, not %s", url, out, address)
		}
		return err
	})
}

// wget returns a function that asks from a pod.
func (c *cluster) wget(pod string) func(string) (string, error) {
	return func(url string) (string, error) { return c.execAny(pod, "wget", "-T", "5", "-qO-", url) }
}

// execAny runs a command in a pod of any host: by kubectl, or beside the pod's daemon while
// there is no tunnel, by which alone the API server reaches the kubelets of other hosts.
func (c *cluster) execAny(pod string, argv ...string) (string, error) {
	if !hc.withoutTunnel {
		return c.exec(pod, argv...)
	}
	out, err := c.try("get", "pod", pod, "-o", "jsonpath={.spec.nodeName} {.status.containerStatuses[0].containerID}")
	if err != nil {
		return "", err
	}
	name, id, _ := strings.Cut(out, " ")
	for n := 2; n <= hosts; n++ {
		if name == hostName(n) {
			return on(n, append([]string{"subpod", "exec", strings.TrimPrefix(id, "subpod://")}, argv...)...)
		}
	}
	return c.exec(pod, argv...)
}

// onCurl returns a function that asks from a worker's host.
func onCurl(n int) func(string) (string, error) {
	return func(url string) (string, error) { return on(n, "curl", "-sSf", "--max-time", "5", url) }
}

// everyPod asserts that each client reaches the backends of the other hosts, by their own
// addresses.
func (c *cluster) everyPod() {
	c.t.Helper()
	for from := 1; from <= hosts; from++ {
		for to := 1; to <= hosts; to++ {
			if from != to {
				c.seenAs(c.podIP(client(from)), "http://"+c.podIP(backend(to))+":8080", c.wget(client(from)))
			}
		}
	}
}

// same asserts that pods' containers are the ones that they were before f.
func (c *cluster) same(pods []string, f func()) {
	c.t.Helper()
	containers := func() string {
		return c.kubectl(append(append([]string{"get", "pod"}, pods...), "-o", "jsonpath={.items[*].status.containerStatuses[*].containerID}")...)
	}
	before := containers()
	f()
	c.ready(pods...)
	if after := containers(); after != before {
		c.t.Errorf("the containers were %s and are %s", before, after)
	}
}

// addHosts adds a group of rows to those of three hosts.
func addHosts(group map[string]func(*cluster)) struct{} {
	for name, assert := range group {
		hostRows[name] = assert
	}
	return struct{}{}
}

// hostRows are asserted on a cluster of three hosts.
var hostRows = map[string]func(*cluster){
	"hosts-join": func(c *cluster) {
		for n := 2; n <= hosts; n++ {
			c.within(2*readyTimeout, "the worker joins", func() error {
				if _, err := os.Stat(sharedFile("failed")); err == nil {
					c.t.Fatal("a worker has failed")
				}
				_, err := c.try("get", "node", hostName(n))
				return err
			})
			c.nodeReady(hostName(n))
		}
	},
	"hosts-address": func(c *cluster) {
		for n := 1; n <= hosts; n++ {
			c.eventually(func() error {
				return c.is(hostAddr(n), "get", "node", hostName(n), "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
			})
		}
	},
	"hosts-subnets": func(c *cluster) {
		for n := 1; n <= hosts; n++ {
			c.apply(spread(n))
		}
		c.apply(spreadService)
		for n := 1; n <= hosts; n++ {
			c.ready(client(n), backend(n))
			cidr := c.kubectl("get", "node", hostName(n), "-o", "jsonpath={.spec.podCIDR}")
			prefix := strings.TrimSuffix(cidr, "0/24")
			for _, name := range []string{client(n), backend(n)} {
				if ip := c.podIP(name); !strings.HasPrefix(ip, prefix) {
					c.t.Errorf("%s on %s has %s, not of %s", name, hostName(n), ip, cidr)
				}
			}
		}
	},
	"cross-node": func(c *cluster) { c.everyPod() },
	"cross-node-large": func(c *cluster) {
		want, err := c.execAny(client(3), "md5sum", "/w/large")
		must(c.t, err)
		c.eventually(func() error {
			got, err := c.execAny(client(2), "sh", "-c", "wget -T 20 -qO- http://"+c.podIP(client(3))+":8000/large | md5sum")
			if err == nil && strings.Fields(got)[0] != strings.Fields(want)[0] {
				err = errors.New("it comes changed: " + got)
			}
			return err
		})
	},
	"cross-node-from-node": func(c *cluster) {
		gateway := strings.TrimSuffix(c.kubectl("get", "node", c.name, "-o", "jsonpath={.spec.podCIDR}"), "0/24") + "1"
		c.seenAs(gateway, "http://"+c.podIP(backend(2))+":8080", c.get)
	},
	"cross-node-to-node": func(c *cluster) {
		c.apply(pod("hostnet2", "mkdir /w; echo hostnet2 > /w/index.html; httpd -p 18090 -h /w; "+asleep, "", "hostNetwork: true\nnodeName: "+hostName(2)))
		c.ready("hostnet2")
		for _, ask := range []func(string) (string, error){c.get, c.wget(client(1)), c.wget(client(3))} {
			c.backends(1, func() (string, error) { return ask("http://" + hostAddr(2) + ":18090/") }, "hostnet2")
		}
		c.kubectl("delete", "pod", "hostnet2", "--wait=false")
	},
	"cross-node-service": func(c *cluster) {
		ip := c.kubectl("get", "service", "spread", "-o", "jsonpath={.spec.clusterIP}")
		for n := 1; n <= hosts; n++ {
			c.backends(hosts, func() (string, error) { return c.wget(client(n))("http://" + ip + "/hostname") })
		}
		c.backends(hosts, func() (string, error) { return c.get("http://" + ip + "/hostname") })
	},
	"cross-node-dns": func(c *cluster) {
		for n := 2; n <= hosts; n++ {
			c.backends(hosts, func() (string, error) { return c.wget(client(n))("http://spread.default.svc.cluster.local/hostname") })
		}
	},
	"cross-node-node-port": func(c *cluster) {
		c.backends(hosts, func() (string, error) { return c.wget(client(3))("http://" + hostAddr(2) + ":30090/hostname") })
	},
	"exec-remote": func(c *cluster) {
		for n := 2; n <= hosts; n++ {
			c.eventually(func() error { return c.says(client(n), client(n), "hostname") })
			c.eventually(func() error { return c.has("Started HTTP server", "logs", backend(n)) })
		}
		if out, err := on(3, "curl", "-sSk", "--max-time", "5", "https://"+hostAddr(2)+":10250/healthz"); err == nil {
			c.t.Errorf("the kubelet answers on its host: %s", out)
		}
	},
	"host-port-remote": func(c *cluster) {
		c.apply(pod("hostport2", "mkdir /w; echo hostport2 > /w/index.html; httpd -p 80 -h /w; "+asleep, "ports: [{containerPort: 80, hostPort: 28081}]", "nodeName: "+hostName(2)))
		c.ready("hostport2")
		c.backends(1, func() (string, error) {
			return onCurl(3)("http://" + hostAddr(2) + ":28081/")
		}, "hostport2")
		c.kubectl("delete", "pod", "hostport2", "--wait=false")
	},
	"node-port-host": func(c *cluster) {
		c.backends(hosts, func() (string, error) { return onCurl(3)("http://" + hostAddr(2) + ":30090/hostname") })
	},
	"node-port-client": func(c *cluster) {
		c.apply("apiVersion: v1\nkind: Service\nmetadata: {name: local}\n" +
			"spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: spread}, ports: [{port: 80, targetPort: 8080, nodePort: 30091}]}\n")
		c.seenAs(hostAddr(3), "http://"+hostAddr(2)+":30091", onCurl(3))
		c.seenAs(hostAddr(2), "http://"+hostAddr(3)+":30091", onCurl(2))
	},
	"load-balancer": func(c *cluster) {
		c.apply("apiVersion: v1\nkind: Service\nmetadata: {name: balanced}\n" +
			"spec: {type: LoadBalancer, selector: {app: spread}, ports: [{port: 8088, targetPort: 8080}]}\n")
		// What a controller of load balancers does.
		c.kubectl("patch", "service", "balanced", "--subresource=status", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"`+hostAddr(2)+`"}]}}}`)
		c.backends(hosts, func() (string, error) { return onCurl(3)("http://" + hostAddr(2) + ":8088/hostname") })
	},
	"external-ip": func(c *cluster) {
		c.apply("apiVersion: v1\nkind: Service\nmetadata: {name: external}\n" +
			"spec: {externalIPs: [" + hostAddr(3) + "], selector: {app: spread}, ports: [{port: 8089, targetPort: 8080}]}\n")
		c.backends(hosts, func() (string, error) { return onCurl(2)("http://" + hostAddr(3) + ":8089/hostname") })
		c.kubectl("delete", "service", "external")
		c.eventually(func() error {
			if out, err := onCurl(2)("http://" + hostAddr(3) + ":8089/hostname"); err == nil {
				return errors.New("it is still open: " + out)
			}
			return nil
		})
	},
	"tunnel-killed": func(c *cluster) {
		c.same([]string{client(2), backend(2), client(3)}, func() {
			_, err := on(2, "subpod", "nsenter", "--", "pkill", "-KILL", "-f", "kubernetes tunnel --in-nod[e]")
			must(c.t, err)
			c.everyPod()
		})
	},
	"server-killed-remote": func(c *cluster) {
		c.same([]string{client(2), backend(2), client(3)}, func() {
			_, err := on(2, "subpod", "nsenter", "--", "pkill", "-KILL", "-x", "subpod-server")
			must(c.t, err)
			c.everyPod()
		})
	},
	"uplink-killed": func(c *cluster) {
		c.same([]string{client(2), backend(2), client(3)}, func() {
			_, err := on(2, "sh", "-c", "pkill -KILL -u $(id -u) -x slirp4netns")
			must(c.t, err)
			c.everyPod()
			c.eventually(func() error { return c.says(client(2), client(2), "hostname") })
			// The kubelet's connection to the API server is another one now.
			c.apply(pod("after-uplink", asleep, "", "nodeName: "+hostName(2)))
			c.ready("after-uplink")
			c.kubectl("delete", "pod", "after-uplink", "--wait=false")
		})
	},
	"upgrade-node": func(c *cluster) {
		// To the version that it has: the cluster's kubelet configuration comes anew.
		const grep = "grep PodAndContainerStatsFromCRI /var/lib/kubelet/config.yaml"
		_, err := on(2, "subpod", "nsenter", "--", "sh", "-c", "echo >/var/lib/kubelet/config.yaml && kubeadm upgrade node --config=/etc/kubernetes/subpod/upgrade.yaml && "+grep)
		must(c.t, err)
		_, err = on(2, "subpod", "nsenter", "--", "pkill", "-KILL", "-x", "kubelet")
		must(c.t, err)
		c.apply(pod("after-upgrade", asleep, "", "nodeName: "+hostName(2)))
		c.ready("after-upgrade")
		c.kubectl("delete", "pod", "after-upgrade", "--wait=false")
	},
	"node-cut": func(c *cluster) {
		c.same([]string{client(3), backend(3)}, func() {
			c.network("cut 3")
			c.eventually(func() error {
				return c.is("Unknown", "get", "node", hostName(3), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			})
			c.network("join 3")
			c.nodeReady(hostName(3))
			c.everyPod()
		})
	},
	"node-dies": func(c *cluster) {
		c.apply(mover)
		c.eventually(func() error {
			return c.is("1", "get", "deployment", "mover", "-o", "jsonpath={.status.availableReplicas}")
		})
		from := c.kubectl("get", "pod", "-l", "app=mover", "-o", "jsonpath={.items[*].spec.nodeName}")
		dies, lives := 2, 3
		if from == hostName(lives) {
			dies, lives = lives, dies
		}
		must(c.t, c.is(hostName(dies), "get", "pod", "-l", "app=mover", "-o", "jsonpath={.items[*].spec.nodeName}"))
		_, err := ask(dies, request{Action: "kill"})
		must(c.t, err)
		c.eventually(func() error {
			return c.has(hostName(lives)+" Running", "get", "pod", "-l", "app=mover", "-o", "jsonpath={range .items[*]}{.spec.nodeName} {.status.phase};{end}")
		})
		_, err = ask(dies, request{Action: "run"})
		must(c.t, err)
		c.nodeReady(hostName(dies))
		c.ready(client(dies), backend(dies))
		c.everyPod()
		// Not a second one: what was left of it on the node that died is gone.
		c.eventually(func() error {
			return c.is(hostName(lives), "get", "pod", "-l", "app=mover", "-o", "jsonpath={.items[*].spec.nodeName}")
		})
	},
}

// mover is a Deployment whose pod leaves a node that is not reached after some seconds.
const mover = `apiVersion: apps/v1
kind: Deployment
metadata: {name: mover}
spec:
  replicas: 1
  selector: {matchLabels: {app: mover}}
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: mover}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [host2, host3]}]}]}}}
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 3}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 3}
      containers:
      - {name: c, image: ` + busybox + `, imagePullPolicy: IfNotPresent, command: [sh, -c, "` + asleep + `"]}
`

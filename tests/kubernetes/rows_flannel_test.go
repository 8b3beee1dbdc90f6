package kubernetes

import (
	"errors"
	"fmt"
	"strings"
)

// flannel is the manifest of flannel's documentation, without the parts that install a CNI
// plugin, and with what a rootless node needs: the uplink's device, since flannel looks for
// one that has the node's address, and the host's address for the other nodes.
func flannel(image string) string {
	return `apiVersion: v1
kind: Namespace
metadata: {name: kube-flannel, labels: {pod-security.kubernetes.io/enforce: privileged}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: flannel}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get]}
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: flannel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel}
subjects: [{kind: ServiceAccount, name: flannel, namespace: kube-flannel}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: flannel, namespace: kube-flannel}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kube-flannel-cfg, namespace: kube-flannel}
data:
  net-conf.json: |
    {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "MTU": 1500}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-flannel-ds, namespace: kube-flannel}
spec:
  selector: {matchLabels: {app: flannel}}
  template:
    metadata: {labels: {app: flannel}}
    spec:
      hostNetwork: true
      priorityClassName: system-node-critical
      tolerations: [{operator: Exists, effect: NoSchedule}]
      serviceAccountName: flannel
      containers:
      - name: kube-flannel
        image: ` + image + `
        imagePullPolicy: IfNotPresent
        command: [/opt/bin/flanneld]
        args: [--ip-masq, --kube-subnet-mgr, --healthz-port=8081, --iface=tap0, --public-ip=$(HOST_IP)]
        ports: [{name: healthz, containerPort: 8081}]
        livenessProbe: {httpGet: {path: /healthz, port: healthz}, initialDelaySeconds: 10, periodSeconds: 30}
        readinessProbe: {httpGet: {path: /readyz, port: healthz}, initialDelaySeconds: 1, periodSeconds: 2}
        securityContext: {privileged: false, capabilities: {add: [NET_ADMIN, NET_RAW]}}
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
        volumeMounts:
        - {name: run, mountPath: /run/flannel}
        - {name: flannel-cfg, mountPath: /etc/kube-flannel/}
        - {name: xtables-lock, mountPath: /run/xtables.lock}
      volumes:
      - {name: run, hostPath: {path: /run/flannel}}
      - {name: flannel-cfg, configMap: {name: kube-flannel-cfg}}
      - {name: xtables-lock, hostPath: {path: /run/xtables.lock, type: FileOrCreate}}
`
}

// The rows of flannel are the last ones of three hosts: it takes the tunnel's place.
var _ = addHosts(map[string]func(*cluster){
	"flannel": func(c *cluster) {
		c.stopTunnel()
		for n := 2; n <= hosts; n++ {
			_, err := ask(n, request{Action: "stop tunnel"})
			must(c.t, err)
		}
		hc.withoutTunnel = true
		if err := c.seen(1, 2); err == nil {
			c.t.Fatal("pods of another node are reached without tunnel and flannel")
		}
		image, archive := c.addon("flannel")
		c.subpod("load", "-i", archive)
		for n := 2; n <= hosts; n++ {
			_, err := on(n, "subpod", "load", "-i", archive)
			must(c.t, err)
		}
		c.apply(flannel(image))
		c.eventually(func() error {
			return c.is(fmt.Sprint(hosts), "-n", "kube-flannel", "get", "daemonset", "kube-flannel-ds", "-o", "jsonpath={.status.numberReady}")
		})
		c.everyPod()
	},
	"flannel-large": func(c *cluster) { hostRows["cross-node-large"](c) },
	"flannel-service": func(c *cluster) {
		hostRows["cross-node-service"](c)
		hostRows["cross-node-dns"](c)
	},
	"flannel-killed": func(c *cluster) {
		c.same([]string{client(2), backend(2), client(3)}, func() {
			_, err := on(2, "subpod", "nsenter", "--", "pkill", "-KILL", "-x", "flanneld")
			must(c.t, err)
			c.everyPod()
		})
	},
	"flannel-server-killed": func(c *cluster) {
		c.same([]string{client(2), backend(2), client(3)}, func() {
			_, err := on(2, "subpod", "nsenter", "--", "pkill", "-KILL", "-x", "subpod-server")
			must(c.t, err)
			// The server writes its rules anew: pods keep their addresses.
			c.eventually(func() error { _, err := on(2, "subpod", "ps"); return err })
			c.everyPod()
		})
	},
})

// seen returns an error unless the client of one host reaches the backend of another, which
// sees it by its own address.
func (c *cluster) seen(from, to int) error {
	c.t.Helper()
	out, err := c.wget(client(from))("http://" + c.podIP(backend(to)) + ":8080/clientip")
	if err == nil && !strings.HasPrefix(out, c.podIP(client(from))+":") {
		err = errors.New("it sees " + out)
	}
	return err
}

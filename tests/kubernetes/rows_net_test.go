package kubernetes

import (
	"errors"
	"fmt"
	"strings"
)

// runs is a row: a pod with this specification prints want.
func runs(name, want, script, container, extra string) func(*cluster) {
	return func(c *cluster) {
		c.apply(pod(name, script+"; "+asleep, container, extra))
		c.ready(name)
		c.eventually(func() error { return c.is(want, "logs", name) })
		c.kubectl("delete", "pod", name, "--wait=false")
	}
}

var _ = add(map[string]func(*cluster){
	"host-network": func(c *cluster) {
		c.apply(pod("hostnet", "mkdir /w; echo hostnet > /w/index.html; httpd -p 18090 -h /w; "+asleep, "", "hostNetwork: true"))
		c.ready("hostnet")
		c.eventually(func() error { return c.is(c.nodeIP(), "get", "pod", "hostnet", "-o", "jsonpath={.status.podIP}") })
		c.backends(1, func() (string, error) { return c.get("http://127.0.0.1:18090/") }, "hostnet")
		c.backends(1, func() (string, error) {
			return c.exec("client", "wget", "-T", "5", "-qO-", "http://"+c.nodeIP()+":18090/")
		}, "hostnet")
		c.kubectl("delete", "pod", "hostnet", "--wait=false")
	},
	"host-port": func(c *cluster) {
		c.apply(pod("hostport", "mkdir /w; echo hostport > /w/index.html; httpd -p 80 -h /w; "+asleep, "ports: [{containerPort: 80, hostPort: 28080}]", ""))
		c.ready("hostport")
		for _, address := range []string{c.nodeIP(), "127.0.0.1"} {
			c.backends(1, func() (string, error) { return c.get("http://" + address + ":28080/") }, "hostport")
		}
		c.backends(1, func() (string, error) {
			return c.exec("client", "wget", "-T", "5", "-qO-", "http://"+c.nodeIP()+":28080/")
		}, "hostport")
	},
	"host-port-on-host": func(c *cluster) {
		c.eventually(func() error {
			out, err := c.Command(c.t.Context(), "curl", "-sS", "-f", "--max-time", "5", "http://127.0.0.1:28080/").CombinedOutput()
			if err == nil && strings.TrimSpace(string(out)) != "hostport" {
				err = errors.New(string(out))
			}
			return err
		})
		c.kubectl("delete", "pod", "hostport", "--wait=false")
	},
	"kubelet-not-on-host": func(c *cluster) {
		if out, err := c.Command(c.t.Context(), "curl", "-sSk", "--max-time", "5", "https://127.0.0.1:10250/healthz").CombinedOutput(); err == nil {
			c.t.Fatalf("the kubelet answers on the host: %s", out)
		}
	},
	"host-pid":   runs("hostpid", "yes", "[ $(ls -d /proc/[0-9]* | wc -l) -gt 20 ] && echo yes", "", "hostPID: true"),
	"own-pid":    runs("ownpid", "sh", "cat /proc/1/comm", "", ""),
	"share-pid":  runs("sharepid", "yes", "[ \"$(cat /proc/1/comm)\" != sh ] && echo yes", "", "shareProcessNamespace: true"),
	"host-ipc":   runs("hostipc", "ok", "echo ok", "", "hostIPC: true"),
	"user-group": runs("secctx", "1000 2000", "echo $(id -u) $(id -g)", "", "securityContext: {runAsUser: 1000, runAsGroup: 2000}"),
	"fs-group": runs("fsgroup", "3000", "touch /e/x; stat -c %g /e/x", "volumeMounts: [{name: e, mountPath: /e}]",
		"securityContext: {fsGroup: 3000}\nvolumes: [{name: e, emptyDir: {}}]"),
	"read-only-root": runs("roroot", "refused", "touch /x 2>/dev/null || echo refused", "securityContext: {readOnlyRootFilesystem: true}", ""),
	"no-new-privs":   runs("nnp", "1", "awk '/NoNewPrivs/ {print $2}' /proc/self/status", "securityContext: {allowPrivilegeEscalation: false}", ""),
	"capabilities":   runs("caps", "0000000000000000", "awk '/CapEff/ {print $2}' /proc/self/status", "securityContext: {capabilities: {drop: [ALL]}}", ""),
	"seccomp":        runs("seccomp", "2", "awk '/Seccomp:/ {print $2}' /proc/self/status", "", "securityContext: {seccompProfile: {type: RuntimeDefault}}"),
	"privileged":     runs("priv", "mounted", "mkdir /m && mount -t tmpfs t /m && echo mounted", "securityContext: {privileged: true}", ""),
	"sysctl":         runs("sysctl", "40000 50000", "echo $(cat /proc/sys/net/ipv4/ip_local_port_range)", "", "securityContext: {sysctls: [{name: net.ipv4.ip_local_port_range, value: \"40000 50000\"}]}"),
	"host-aliases":   runs("aliases", "192.0.2.9", "awk '/named/ {print $1}' /etc/hosts", "", "hostAliases: [{ip: 192.0.2.9, hostnames: [named]}]"),
	"dns-config":     runs("dnsconfig", "nameserver 192.0.2.8", "grep nameserver /etc/resolv.conf", "", "dnsPolicy: None\ndnsConfig: {nameservers: [192.0.2.8]}"),
	"host-name":      runs("hostname", "named", "hostname", "", "hostname: named"),
	"runtime-class": func(c *cluster) {
		c.apply("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: crun}\nhandler: crun\n---\n" + pod("crun", asleep, "", "runtimeClassName: crun"))
		c.ready("crun")
		c.kubectl("delete", "pod", "crun", "--wait=false")
	},
	"runtime-class-unknown": func(c *cluster) {
		c.apply("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: nosuch}\nhandler: nosuch\n---\n" + pod("nosuch", asleep, "", "runtimeClassName: nosuch"))
		c.eventually(func() error {
			return c.has("nosuch", "get", "events", "--field-selector=involvedObject.name=nosuch,reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}")
		})
		c.kubectl("delete", "pod", "nosuch", "--wait=false")
	},

	"userns-map": runs("userns", "yes", "awk '$1 == 0 && $2 >= 65536 && $3 == 65536 {print \"yes\"}' /proc/self/uid_map", "", "hostUsers: false"),
	"userns-volume": runs("usernsvol", "0 0 tmpfs", "touch /e/x; echo $(stat -c %u /e/x) $(stat -c %u /e) $(stat -fc %T /e)", "volumeMounts: [{name: e, mountPath: /e}]",
		"hostUsers: false\nvolumes: [{name: e, emptyDir: {medium: Memory}}]"),
	"userns-disk": runs("usernsdisk", "0 0 two", "touch /e/x; echo $(stat -c %u /e/x) $(stat -Lc %u /cm/b) $(cat /cm/b)", "volumeMounts: [{name: e, mountPath: /e}, {name: cm, mountPath: /cm}]",
		"hostUsers: false\nvolumes: [{name: e, emptyDir: {}}, {name: cm, configMap: {name: cm}}]"),
	"userns-image": runs("usernsimg", "0", "stat -c %u /i/agnhost", "volumeMounts: [{name: i, mountPath: /i}]",
		"hostUsers: false\nvolumes: [{name: i, image: {reference: "+agnhost+", pullPolicy: IfNotPresent}}]"),
	"userns-two": func(c *cluster) {
		for i := range 2 {
			c.apply(pod(fmt.Sprintf("userns%d", i), "cat /proc/self/uid_map; "+asleep, "", "hostUsers: false"))
		}
		c.ready("userns0", "userns1")
		if a, b := c.kubectl("logs", "userns0"), c.kubectl("logs", "userns1"); a == b {
			c.t.Errorf("two pods have the same IDs: %s", a)
		}
		c.kubectl("delete", "pod", "userns0", "userns1", "--wait=false")
	},
})

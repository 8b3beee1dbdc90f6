package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var _ = add(map[string]func(*cluster){
	"logs": func(c *cluster) {
		c.apply(pod("logger", "i=0; while :; do i=$((i+1)); echo line $i; echo err $i >&2; sleep 0.2; done", "", ""))
		c.ready("logger")
		c.eventually(func() error { return c.has("line 1\n", "logs", "logger") })
	},
	"logs-tail": func(c *cluster) {
		out := c.kubectl("logs", "--tail=2", "--timestamps", "logger")
		if lines := strings.Split(out, "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], "20") {
			c.t.Errorf("%q", out)
		}
	},
	"logs-follow": func(c *cluster) {
		ctx, cancel := context.WithTimeout(c.t.Context(), rowTimeout)
		defer cancel()
		cmd := c.command(ctx, kubectlArgs("logs", "-f", "--tail=1", "logger")...)
		out, err := cmd.StdoutPipe()
		must(c.t, err)
		must(c.t, cmd.Start())
		_, err = io.ReadFull(out, make([]byte, 100)) // more than the one line
		if err != nil {
			c.t.Error(err)
		}
		cancel()
		_ = cmd.Wait()
	},
	"logs-previous": func(c *cluster) {
		c.apply(pod("prev", "echo run; exit 1", "", ""))
		c.eventually(func() error { return c.is("run", "logs", "--previous", "prev") })
		c.kubectl("delete", "pod", "prev", "--wait=false")
	},
	"exec-code": func(c *cluster) {
		if _, err := c.exec("logger", "sh", "-c", "exit 42"); err == nil || !strings.Contains(err.Error(), "exit status 42") {
			c.t.Error(err)
		}
	},
	"exec-stdin": func(c *cluster) {
		out, err := c.in("abc", kubectlArgs("exec", "-i", "logger", "--", "cat")...)
		if err != nil || out != "abc" {
			c.t.Errorf("%q, %v", out, err)
		}
	},
	"exec-large": func(c *cluster) {
		out, err := c.in(strings.Repeat("x", 20_000_000), kubectlArgs("exec", "-i", "logger", "--", "wc", "-c")...)
		if err != nil || out != "20000000" {
			c.t.Errorf("%q, %v", out, err)
		}
	},
	"exec-stderr": func(c *cluster) {
		if out, err := c.exec("logger", "sh", "-c", "echo out; echo err >&2"); err != nil || out != "out" {
			c.t.Errorf("%q, %v", out, err)
		}
	},
	"exec-terminal": func(c *cluster) {
		c.eventually(func() error {
			out, err := c.in("", "script", "-qec", strings.Join(kubectlArgs("exec", "-it", "logger", "--", "tty"), " "), "/dev/null")
			if err == nil && !strings.Contains(out, "/dev/pts/") {
				err = errors.New(out)
			}
			return err
		})
	},
	"attach": func(c *cluster) {
		c.apply(pod("att", "while read l; do echo got $l; done; echo END; "+asleep, "stdin: true", ""))
		c.ready("att")
		ctx, cancel := context.WithTimeout(c.t.Context(), callTimeout)
		defer cancel()
		cmd := c.command(ctx, kubectlArgs("attach", "-q", "-i", "att")...)
		in, err := cmd.StdinPipe()
		must(c.t, err)
		must(c.t, cmd.Start())
		_, err = io.WriteString(in, "x\n")
		must(c.t, err)
		c.eventually(func() error { return c.has("got x", "logs", "att") })
		cancel()
		_ = cmd.Wait()
		c.kubectl("delete", "pod", "att", "--wait=false")
	},
	"cp": func(c *cluster) {
		there, back := filepath.Join(c.dir, "there"), filepath.Join(c.dir, "back")
		data := strings.Repeat("0123456789abcdef", 1<<16)
		c.write(there, data)
		c.kubectl("cp", there, "logger:/tmp/in")
		c.kubectl("cp", "logger:/tmp/in", back)
		got, err := os.ReadFile(back)
		if err != nil || string(got) != data {
			c.t.Errorf("%d bytes came back of %d: %v", len(got), len(data), err)
		}
	},
	"port-forward":         forwards("deployment/web", "8080"),
	"port-forward-service": forwards("service/web", "80"),
	"debug-container": func(c *cluster) {
		c.kubectl("debug", "logger", "--image="+busybox, "--image-pull-policy=IfNotPresent", "--target=c", "-c", "dbg", "--", "sh", "-c", "ps; sleep 36000")
		c.eventually(func() error { return c.has("while :", "logs", "logger", "-c", "dbg") })
		c.kubectl("delete", "pod", "logger", "--wait=false")
	},
	"debug-node": func(c *cluster) {
		c.kubectl("debug", "node/"+c.name, "--image="+busybox, "--image-pull-policy=IfNotPresent", "--", "ls", "/host/etc/passwd")
		c.eventually(func() error {
			name, err := c.try("get", "pods", "-l", "app.kubernetes.io/managed-by=kubectl-debug", "-o", "jsonpath={.items[*].metadata.name}")
			if err != nil || name == "" {
				return fmt.Errorf("no pod of kubectl debug: %w", err)
			}
			return c.is("/host/etc/passwd", "logs", name)
		})
	},
	"stats-summary": func(c *cluster) {
		c.eventually(func() error {
			var summary struct {
				Pods []struct {
					PodRef      struct{ Name string }
					CPU, Memory map[string]any
					Network     map[string]any
				}
			}
			c.json(&summary, "get", "--raw", "/api/v1/nodes/"+c.name+"/proxy/stats/summary")
			for _, p := range summary.Pods {
				if p.PodRef.Name == "client" && p.CPU["usageCoreNanoSeconds"] != nil && p.Memory["workingSetBytes"] != nil && p.Network["rxBytes"] != nil {
					return nil
				}
			}
			return fmt.Errorf("no CPU, memory and network of the pod client in %+v", summary)
		})
	},
	"metrics-cadvisor": func(c *cluster) {
		c.eventually(func() error {
			return c.has(`pod="client"`, "get", "--raw", "/api/v1/nodes/"+c.name+"/proxy/metrics/cadvisor")
		})
	},
	"metrics-resource": func(c *cluster) {
		c.eventually(func() error {
			return c.has(`pod="client"`, "get", "--raw", "/api/v1/nodes/"+c.name+"/proxy/metrics/resource")
		})
	},

	"static-pod": func(c *cluster) {
		must(c.t, os.WriteFile(filepath.Join(c.DataDir, "kubernetes/manifests/static.yaml"), []byte(pod("static", "echo static; "+asleep, "", "")), 0o600))
		c.eventually(func() error { return c.is("static", "logs", "static-"+c.name) })
	},
	"static-pod-changed": func(c *cluster) {
		must(c.t, os.WriteFile(filepath.Join(c.DataDir, "kubernetes/manifests/static.yaml"), []byte(pod("static", "echo changed; "+asleep, "", "")), 0o600))
		c.eventually(func() error { return c.is("changed", "logs", "static-"+c.name) })
	},
	"static-pod-removed": func(c *cluster) {
		must(c.t, os.Remove(filepath.Join(c.DataDir, "kubernetes/manifests/static.yaml")))
		c.eventually(func() error { return c.is("", "get", "pod", "static-"+c.name, "--ignore-not-found", "-o", "name") })
	},

	"server-killed":  func(c *cluster) { c.undisturbed(func() { c.KillServer() }) },
	"kubelet-killed": func(c *cluster) { c.undisturbed(c.killKubelet) },
	"both-killed":    func(c *cluster) { c.undisturbed(func() { c.KillServer(); c.killKubelet() }) },
	"reload":         func(c *cluster) { c.undisturbed(func() { c.subpod("reload") }) },
	"upgrade": func(c *cluster) {
		if testing.Short() {
			c.t.Skip("the upgrade takes minutes: make test-kubernetes")
		}
		text, err := os.ReadFile(filepath.Join(*programs, "next.version"))
		must(c.t, err)
		version, next := filepath.Base(filepath.Dir(*programs)), strings.TrimSpace(string(text))
		// The next version's images have the programs of this one, which are restarted.
		for _, program := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"} {
			c.subpod("tag", "registry.k8s.io/"+program+":"+version, "registry.k8s.io/"+program+":"+next)
		}
		c.upgrade("apply", next, "--yes", "--config=/etc/kubernetes/subpod/upgrade.yaml")
		c.killKubelet() // as the upgrade of its package
		for _, program := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
			c.eventually(func() error {
				return c.is("registry.k8s.io/"+program+":"+next+" true", "-n", "kube-system", "get", "pod", program+"-"+c.name, "-o",
					"jsonpath={.spec.containers[0].image} {.status.containerStatuses[0].ready}")
			})
		}
		c.nodeReady(c.name)
		c.eventually(func() error {
			_, err := c.in("", "grep", "PodAndContainerStatsFromCRI", "/var/lib/kubelet/config.yaml")
			return err
		})
	},
	"reset": func(c *cluster) {
		c.stopKubelet()
		c.Enter("umount", "--lazy", "/var/lib/kubelet/pods") // and what is mounted below it
		c.kubeadm("reset", "--config=/etc/kubernetes/subpod/reset.yaml")
		if out, err := c.Subpod("pods", "-q"); err != nil || strings.TrimSpace(out) != "" {
			c.t.Errorf("pods are left: %q, %v", out, err)
		}
		for _, name := range []string{"manifests/*", "pki/*", "*.conf"} {
			if left, err := filepath.Glob(filepath.Join(c.DataDir, "kubernetes", name)); err != nil || len(left) > 0 {
				c.t.Errorf("left: %q, %v", left, err)
			}
		}
	},
})

// forwards is a row: kubectl port-forward reaches a backend.
func forwards(target, port string) func(*cluster) {
	return func(c *cluster) {
		ctx, cancel := context.WithTimeout(c.t.Context(), rowTimeout)
		defer cancel()
		cmd := c.command(ctx, kubectlArgs("port-forward", target, "38080:"+port)...)
		must(c.t, cmd.Start())
		c.backends(1, func() (string, error) { return c.get("http://127.0.0.1:38080/hostname") })
		cancel()
		_ = cmd.Wait()
	}
}

// killKubelet kills it; keepKubelet starts another one.
func (c *cluster) killKubelet() {
	c.t.Helper()
	_, err := c.in("", "pkill", "-KILL", "-x", "kubelet")
	must(c.t, err)
	c.eventually(func() error { _, err := c.in("", "pgrep", "-x", "kubelet"); return err })
}

// undisturbed does something to the node, and checks that no container was started again
// and the node works.
func (c *cluster) undisturbed(disturb func()) {
	c.t.Helper()
	const all = `jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.status.containerStatuses[*].containerID}{"\n"}{end}`
	steady := []string{"get", "pods", "-A", "-l", "app in (web, client)", "-o", all}
	system := []string{"get", "pods", "-n", "kube-system", "-o", all}
	before, beforeSystem := c.kubectl(steady...), c.kubectl(system...)
	disturb()
	name := fmt.Sprintf("after-%d", time.Now().UnixNano())
	c.apply(pod(name, "echo here; "+asleep, "", ""))
	c.ready(name)
	c.eventually(func() error { return c.is("here", "logs", name) })
	c.kubectl("delete", "pod", name, "--wait=false")
	if after := c.kubectl(steady...); after != before {
		c.t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if after := c.kubectl(system...); after != beforeSystem {
		c.t.Errorf("before:\n%s\nafter:\n%s", beforeSystem, after)
	}
}

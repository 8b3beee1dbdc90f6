package kubernetes

import (
	"fmt"
	"strings"
)

// ends is a row: a pod comes to a state that jsonpath shows.
func ends(name, manifest, path, want string) func(*cluster) {
	return func(c *cluster) {
		c.apply(manifest)
		c.eventually(func() error { return c.is(want, "get", "pod", name, "-o", "jsonpath="+path) })
		c.kubectl("delete", "pod", name, "--wait=false")
	}
}

// restarts is a row: the kubelet restarts a container whose probe fails.
func restarts(name, script, probe string) func(*cluster) {
	return func(c *cluster) {
		c.apply(pod(name, script, "livenessProbe: {"+probe+", periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 1}", ""))
		c.eventually(func() error {
			n, err := c.try("get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
			if err == nil && (n == "" || n == "0") {
				err = fmt.Errorf("not restarted")
			}
			return err
		})
		c.kubectl("delete", "pod", name, "--wait=false")
	}
}

const containerStatus = "{.status.containerStatuses[0]"

var _ = add(map[string]func(*cluster){
	"probe-http":  restarts("live-http", asleep, "httpGet: {path: /, port: 81}"),
	"probe-tcp":   restarts("live-tcp", asleep, "tcpSocket: {port: 81}"),
	"probe-exec":  restarts("live-exec", asleep, "exec: {command: [\"false\"]}"),
	"probe-grpc":  restarts("live-grpc", asleep, "grpc: {port: 81}"),
	"probe-hangs": restarts("live-hangs", asleep, "exec: {command: [sleep, \"60\"]}"),
	"probe-passes": func(c *cluster) {
		c.apply(pod("lives", "mkdir /w; echo ok > /w/x; touch /ok; httpd -p 80 -h /w; "+asleep, `startupProbe: {httpGet: {path: /x, port: 80}, periodSeconds: 1}
livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
readinessProbe: {exec: {command: [test, -e, /ok]}, periodSeconds: 1}`, ""))
		c.ready("lives")
	},
	"readiness-lost": func(c *cluster) {
		_, err := c.exec("lives", "rm", "/ok")
		must(c.t, err)
		c.eventually(func() error {
			return c.is("false 0", "get", "pod", "lives", "-o", "jsonpath="+containerStatus+".ready} "+containerStatus+".restartCount}")
		})
	},

	"exit-code":    ends("code", pod("code", "exit 42", "", "restartPolicy: Never"), containerStatus+".state.terminated.exitCode}", "42"),
	"crash-loop":   ends("crash", pod("crash", "exit 3", "", ""), containerStatus+".state.waiting.reason}", "CrashLoopBackOff"),
	"last-state":   ends("last", pod("last", "exit 3", "", ""), containerStatus+".lastState.terminated.exitCode} "+containerStatus+".lastState.terminated.reason}", "3 Error"),
	"bad-image":    ends("badimage", strings.Replace(pod("badimage", "true", "", ""), busybox, "docker.io/library/nothing:here", 1), containerStatus+".state.waiting.reason}", "ImagePullBackOff"),
	"deadline":     ends("deadline", pod("deadline", asleep, "", "activeDeadlineSeconds: 2"), "{.status.phase} {.status.reason}", "Failed DeadlineExceeded"),
	"termination":  ends("message", pod("message", "echo -n DONE > /dev/termination-log", "", "restartPolicy: Never"), containerStatus+".state.terminated.message}", "DONE"),
	"from-log":     ends("fromlog", pod("fromlog", "echo -n LAST; exit 1", "terminationMessagePolicy: FallbackToLogsOnError", "restartPolicy: Never"), containerStatus+".state.terminated.message}", "LAST"),
	"start-error":  ends("nostart", strings.Replace(pod("nostart", "", "", "restartPolicy: Never"), `[sh, -c, ""]`, "[/nothing/here]", 1), containerStatus+".state.terminated.reason} "+containerStatus+".state.terminated.exitCode}", "StartError 128"),
	"unknown-user": ends("nouser", pod("nouser", "true", "securityContext: {runAsNonRoot: true}", "restartPolicy: Never"), containerStatus+".state.waiting.reason}", "CreateContainerConfigError"),

	"init-and-sidecar": func(c *cluster) {
		step := func(name, script string) string {
			return fmt.Sprintf("- {name: %s, image: %s, imagePullPolicy: IfNotPresent, command: [sh, -c, %q], volumeMounts: [{name: v, mountPath: /v}]}\n", name, busybox, script)
		}
		sidecar := strings.Replace(step("side", "echo side >> /v/log; trap 'echo sideend >> /v/log; exit 0' TERM; sleep 36000 & wait"), "{", "{restartPolicy: Always, ", 1)
		c.apply(pod("initside", "echo main >> /v/log; cat /v/log", "volumeMounts: [{name: v, mountPath: /v}]",
			"restartPolicy: Never\nvolumes: [{name: v, emptyDir: {}}]\ninitContainers:\n"+step("i1", "echo i1 >> /v/log")+sidecar+step("i2", "until grep -q side /v/log; do sleep 0.1; done; echo i2 >> /v/log")))
		c.eventually(func() error { return c.is("Succeeded", "get", "pod", "initside", "-o", "jsonpath={.status.phase}") })
		c.eventually(func() error { return c.is("i1\nside\ni2\nmain", "logs", "initside", "-c", "c") })
	},
	"hooks": func(c *cluster) {
		c.apply(pod("hooks", "trap 'echo term >> /v/log; exit 0' TERM; until grep -q post /v/log; do sleep 0.1; done; sleep 36000 & wait",
			"lifecycle: {postStart: {exec: {command: [sh, -c, \"echo post >> /v/log\"]}}, preStop: {exec: {command: [sh, -c, \"echo pre >> /v/log\"]}}}\nvolumeMounts: [{name: v, mountPath: /v}]",
			"volumes: [{name: v, hostPath: {path: /var/lib/cni/subpod-hooks, type: DirectoryOrCreate}}]"))
		c.ready("hooks")
		c.kubectl("delete", "pod", "hooks")
		c.eventually(func() error {
			out, err := c.in("", "cat", "/var/lib/cni/subpod-hooks/log")
			if err == nil && out != "post\npre\nterm" {
				err = fmt.Errorf("%q", out)
			}
			return err
		})
	},
	"job": func(c *cluster) {
		c.apply(job("job", "true", "completions: 3\n  parallelism: 3"))
		c.eventually(func() error { return c.is("3", "get", "job", "job", "-o", "jsonpath={.status.succeeded}") })
	},
	"job-fails": func(c *cluster) {
		c.apply(job("jobfails", "exit 1", "backoffLimit: 0"))
		c.eventually(func() error {
			return c.is("BackoffLimitExceeded", "get", "job", "jobfails", "-o", `jsonpath={.status.conditions[?(@.type=="Failed")].reason}`)
		})
	},
	"cron-job": func(c *cluster) {
		c.apply(fmt.Sprintf("apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: cron}\nspec: {schedule: \"0 0 1 1 *\", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: %s, imagePullPolicy: IfNotPresent, command: [\"true\"]}]}}}}}\n", busybox))
		c.kubectl("create", "job", "fromcron", "--from=cronjob/cron")
		c.eventually(func() error { return c.is("1", "get", "job", "fromcron", "-o", "jsonpath={.status.succeeded}") })
	},
	"daemonset": func(c *cluster) {
		c.apply(controller("DaemonSet", "ds", ""))
		c.eventually(func() error { return c.is("1", "get", "daemonset", "ds", "-o", "jsonpath={.status.numberReady}") })
		c.kubectl("delete", "daemonset", "ds", "--wait=false")
	},
	"statefulset": func(c *cluster) {
		c.apply(controller("StatefulSet", "ss", "serviceName: ss, replicas: 2, "))
		c.eventually(func() error {
			return c.is("2", "get", "statefulset", "ss", "-o", "jsonpath={.status.readyReplicas}")
		})
		c.ready("ss-0", "ss-1")
		c.kubectl("delete", "statefulset", "ss", "--wait=false")
	},
	"evict": func(c *cluster) {
		c.apply(pod("evicted", asleep, "", ""))
		c.ready("evicted")
		_, err := c.in(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"evicted","namespace":"default"}}`,
			kubectlArgs("create", "--raw", "/api/v1/namespaces/default/pods/evicted/eviction", "-f", "-")...)
		must(c.t, err)
		c.eventually(func() error { return c.is("", "get", "pod", "evicted", "--ignore-not-found", "-o", "name") })
	},
	"cordon": func(c *cluster) {
		c.kubectl("cordon", c.name)
		defer c.kubectl("uncordon", c.name)
		c.apply(pod("cordoned", "true", "", ""))
		c.eventually(func() error {
			return c.is("Unschedulable", "get", "pod", "cordoned", "-o", "jsonpath={.status.conditions[0].reason}")
		})
		c.kubectl("delete", "pod", "cordoned", "--wait=false")
	},
})

func job(name, script, spec string) string {
	return fmt.Sprintf("apiVersion: batch/v1\nkind: Job\nmetadata: {name: %s}\nspec:\n  %s\n  template: {spec: {restartPolicy: Never, containers: [{name: c, image: %s, imagePullPolicy: IfNotPresent, command: [sh, -c, %q]}]}}\n",
		name, spec, busybox, script)
}

func controller(kind, name, spec string) string {
	return fmt.Sprintf("apiVersion: apps/v1\nkind: %s\nmetadata: {name: %s}\nspec: {%sselector: {matchLabels: {app: %s}}, template: {metadata: {labels: {app: %s}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: %s, imagePullPolicy: IfNotPresent, command: [sh, -c, %q]}]}}}\n",
		kind, name, spec, name, name, busybox, asleep)
}

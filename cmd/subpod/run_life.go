package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// defaultLogMax bounds the log of what "run -d" starts, in bytes, unless --log-opt says
// otherwise: nobody watches it.
const defaultLogMax = 100 << 20

// entrypoint reads --entrypoint: a program, or a JSON list of it and its arguments.
func entrypoint(text string) []string {
	var list []string
	if strings.HasPrefix(text, "[") && json.Unmarshal([]byte(text), &list) == nil && len(list) > 0 {
		return list
	}
	return []string{text}
}

// checkLife validates the flags for the start and the end of a container.
func (o *runOptions) checkLife() error {
	switch {
	case o.stopTimeout < 0:
		return usagef("invalid --stop-timeout %d: it must not be negative", o.stopTimeout)
	case o.removeImage && !o.remove:
		return usagef("--rmi needs --rm: a container that stays needs its image")
	case o.removeImage && o.detach:
		return usagef("--rmi is refused with -d: %sthis command removes the image, and has ended by then", notYet)
	case o.replace && o.name == "":
		return usagef("--replace needs --name")
	case o.joins() && o.remove && o.detach:
		return usagef("--rm is refused with -d and --pod: %sonly whole pods are removed by the daemon", notYet)
	case len(o.attach) > 0 && o.detach:
		return usagef("-a and -d exclude each other")
	}
	for _, a := range o.attach {
		if !slices.Contains([]string{"stdin", "stdout", "stderr"}, strings.ToLower(a)) {
			return usagef("invalid -a %q: expected stdin, stdout or stderr", a)
		}
	}
	if o.pod != "" && o.name != "" && o.name == o.pod {
		return usagef("--name and --pod are the same: a container of a pod needs a name of its own")
	}
	for _, flag := range ofPod {
		if o.joins() && o.given(flag) {
			return usagef("--%s cannot be combined with --pod: it is the pod's, which gets it when it is made (--pod %sNAME)", flag, newPod)
		}
	}
	if _, err := parseDetachKeys(o.detachKeys); err != nil {
		return err
	}
	switch o.logDriver {
	case "k8s-file", "json-file", "none", "":
	case "journald", "passthrough", "passthrough-tty":
		return usagef("--log-driver %s is refused: logs are files in the format of the CRI", o.logDriver)
	default:
		return usagef("invalid --log-driver %q: expected k8s-file or none", o.logDriver)
	}
	var err error
	o.wanted, err = o.asked()
	return err
}

// joins reports whether the container is made in a pod that is there.
func (o *moreOptions) joins() bool { return o.pod != "" && !strings.HasPrefix(o.pod, newPod) }

// ofPod are the flags that a pod gets when it is made.
var ofPod = []string{"publish", "publish-all", "hostname", "network", "net", "network-alias", "egress", "ip", "ip6", "mac-address", "add-host", "dns", "dns-search", "dns-option", "dns-opt", "sysctl", "shm-size", "userns", "ipc", "uts", "cgroup-parent", "runtime"}

// fillLife sets what happens to the container and its output.
func (o *runOptions) fillLife(pod *runtimeapi.PodSandboxConfig, ctr *runtimeapi.ContainerConfig, options *api.ContainerOptions) (err error) {
	options.Init, options.Emulated = o.init, o.emulated
	if o.given("stop-timeout") {
		options.StopTimeout = &o.stopTimeout
	}
	if o.stopSignal != "" {
		if ctr.StopSignal, err = parseStopSignal(o.stopSignal); err != nil {
			return err
		}
	}
	if o.shmSize != "" {
		n, err := parseSize("--shm-size", o.shmSize)
		if err != nil {
			return err
		}
		pod.Annotations[api.AnnotationShmSize] = strconv.FormatInt(n, 10)
	}
	if options.PIDFile, err = pidFilePath(o.pidFile); err != nil {
		return err
	}
	pod.Linux.CgroupParent = o.cgroupParent
	if options.Health, err = o.health.parse(); err != nil {
		return err
	}
	return o.fillLog(options)
}

func (o *runOptions) fillLog(options *api.ContainerOptions) error {
	if o.detach && o.logDriver != "none" {
		options.LogMax = defaultLogMax
	}
	for _, opt := range o.logOpts {
		name, value, _ := strings.Cut(opt, "=")
		switch name {
		case "max-size":
			if value == "-1" {
				options.LogMax = 0
				continue
			}
			n, err := parseSize("--log-opt max-size", value)
			if err != nil {
				return err
			}
			options.LogMax = n
		case "max-file", "path", "tag", "label":
			return usagef("--log-opt %s is refused: %stwo halves of the log are kept, in the data directory", name, notYet)
		default:
			return usagef("invalid --log-opt %q: expected max-size=SIZE", opt)
		}
	}
	return nil
}

// parseStopSignal reads the name or number of a signal.
func parseStopSignal(s string) (runtimeapi.Signal, error) {
	name := strings.ToUpper(s)
	if n, err := strconv.Atoi(s); err == nil {
		if name = unix.SignalName(unix.Signal(n)); name == "" && n >= 34 {
			name = fmt.Sprintf("RTMIN+%d", n-34)
		}
	}
	name = "SIG" + strings.TrimPrefix(name, "SIG")
	// The CRI writes SIGRTMIN+1 so.
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	v, ok := runtimeapi.Signal_value["SIGNAL_"+name]
	if !ok {
		v, ok = runtimeapi.Signal_value[name]
	}
	if !ok || v == 0 {
		return 0, usagef("invalid --stop-signal %q: it is not the name or number of a signal", s)
	}
	return runtimeapi.Signal(v), nil
}

// newPod is what --pod begins with where the pod is to be made.
const newPod = "new:"

// runPod returns the pod that --pod names.
func (o *moreOptions) runPod(ctx context.Context, c *client.Client) (*runtimeapi.PodSandbox, error) {
	p, err := c.Pod(ctx, o.pod)
	if errors.Is(err, client.ErrNotFound) {
		err = fmt.Errorf("--pod %s: %w; make it with --pod %s%s", o.pod, client.ErrNotFound, newPod, o.pod)
	}
	if err == nil && p.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		err = fmt.Errorf("--pod %s: the pod is stopped", o.pod)
	}
	return p, err
}

// writeIDFile writes an ID to a file that is not there yet, as scripts expect.
func writeIDFile(flag, file, id string) error {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	_, err = f.WriteString(id)
	return errors.Join(err, f.Close())
}

// checkIDFile refuses a file that is there before anything is started.
func checkIDFile(flag, file string) error {
	if file == "" {
		return nil
	}
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%s: the file %s exists; remove it if no other container needs it", flag, file)
	}
	return nil
}

// prepare does what some flags need before the container is made.
func (o *runOptions) prepare(ctx context.Context, conn *connection, image string, pod *runtimeapi.PodSandboxConfig, ctr *runtimeapi.ContainerConfig) error {
	for _, ref := range o.volumesFrom {
		if err := copyMounts(ctx, conn.Client, ref, ctr); err != nil {
			return err
		}
	}
	if o.publishAll {
		if !hasImage(ctx, conn.Client, image) && o.pull != "never" {
			if err := o.pullImage(ctx, conn.Client, image); err != nil {
				return err
			}
		}
		if err := o.publishExposed(ctx, conn.Client, image, pod); err != nil {
			return err
		}
	}
	if err := o.fillUserNamespace(ctx, conn.Client, pod, ctr); err != nil {
		return err
	}
	if name, made := strings.CutPrefix(o.pod, newPod); made {
		if !isName(name) {
			return usagef("invalid --pod %q: expected %sNAME", o.pod, newPod)
		}
		pod.Metadata = client.PodMetadata(client.DefaultNamespace, name)
		return checkName(ctx, conn.Client, name)
	}
	if o.pod == "" {
		return nil
	}
	p, err := o.runPod(ctx, conn.Client)
	if err != nil {
		return err
	}
	o.podID = p.Id
	pod.LogDirectory, ctr.LogPath = "", "" // the log is where the pod's are
	config, err := podConfig(ctx, conn.Client, p.Id)
	if err == nil && config.LogDirectory != "" && o.logDriver != "none" {
		ctr.LogPath = o.name + ".log"
	}
	return err
}

// copyMounts gives a container the mounts of another one.
func copyMounts(ctx context.Context, c *client.Client, ref string, ctr *runtimeapi.ContainerConfig) error {
	name, option, _ := strings.Cut(ref, ":")
	if option != "" && option != "ro" && option != "rw" {
		return usagef("invalid --volumes-from %q: expected CONTAINER[:ro]", ref)
	}
	x, err := c.Container(ctx, name)
	if err != nil {
		return err
	}
	st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: x.Id})
	if err != nil {
		return err
	}
	for _, m := range st.Status.Mounts {
		taken := func(own *runtimeapi.Mount) bool { return own.ContainerPath == m.ContainerPath }
		if m.HostPath == "" || slices.ContainsFunc(ctr.Mounts, taken) {
			continue
		}
		ctr.Mounts = append(ctr.Mounts, &runtimeapi.Mount{
			HostPath: m.HostPath, ContainerPath: m.ContainerPath, Readonly: m.Readonly || option == "ro", Propagation: m.Propagation,
		})
	}
	return nil
}

func hasImage(ctx context.Context, c *client.Client, ref string) bool {
	st, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return err == nil && st.Image != nil
}

// removeUnused removes an image after a container that was the only one to use it.
func removeUnused(ctx context.Context, c *client.Client, ref string) {
	for range removeTries { // the daemon removes the container at the same time
		_, err := c.Untag(ctx, ref, false)
		if err == nil || client.IsNotFound(err) {
			return
		}
		time.Sleep(removePause)
	}
}

// removeUnused tries again for so long, which a busy daemon may take.
const (
	removeTries = 50
	removePause = 100 * time.Millisecond
)

// removeNamed removes the pod that has a name, for --replace.
func removeNamed(ctx context.Context, conn *connection, name string) error {
	p, err := conn.Pod(ctx, name)
	if errors.Is(err, client.ErrNotFound) || err == nil && client.PodName(p) != name {
		return nil
	}
	if err != nil {
		return err
	}
	return remove(ctx, conn, p.Id, true)
}

// attachTo leaves alone the streams that -a does not name.
func (o *runOptions) attachTo(s *session) {
	if len(o.attach) == 0 {
		return
	}
	has := func(name string) bool {
		return slices.ContainsFunc(o.attach, func(a string) bool { return strings.EqualFold(a, name) })
	}
	s.stdin = s.stdin && has("stdin") || has("stdin") && o.interactive
	s.noOutput, s.noErrors = !has("stdout"), !has("stderr")
}

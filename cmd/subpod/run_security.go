package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/cgroup"
)

// fillSecurity sets the security contexts.
func (o *runOptions) fillSecurity(pod *runtimeapi.PodSandboxConfig, ctr *runtimeapi.ContainerConfig) error {
	ns := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	switch o.network {
	case "host":
		ns.Network = runtimeapi.NamespaceMode_NODE
		pod.Hostname = ""
	case "none":
		pod.Annotations[api.AnnotationNetwork] = api.NetworkNone
	}
	if o.egress != "" {
		pod.Annotations[api.AnnotationEgress] = o.egress
	}
	sec := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: ns,
		Privileged:       o.privileged,
		ReadonlyRootfs:   o.readOnly,
		Capabilities:     &runtimeapi.Capability{AddCapabilities: o.capAdd, DropCapabilities: o.capDrop},
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		MaskedPaths:      kube.MaskedPaths,
		ReadonlyPaths:    kube.ReadonlyPaths,
	}
	if o.privileged {
		sec.Seccomp.ProfileType = runtimeapi.SecurityProfile_Unconfined
		sec.MaskedPaths, sec.ReadonlyPaths = nil, nil
	}
	if err := o.fillUser(ctr, sec); err != nil {
		return err
	}
	for _, opt := range o.security {
		if err := securityOption(sec, opt); err != nil {
			return err
		}
		if name, value := cutOption(opt); name == "unmask" && namesPath(strings.Split(value, ":"), cgroup.Mount) {
			ctr.Annotations[api.AnnotationCgroup] = api.CgroupWritable
		}
	}
	pod.Linux.SecurityContext.NamespaceOptions = ns // one message: what is set later, both have
	pod.Linux.SecurityContext.Privileged = o.privileged
	ctr.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: sec}
	return nil
}

// fillUser sets the user that the command runs as. The CRI has no field for a group
// name, so that is passed in an annotation.
func (o *runOptions) fillUser(ctr *runtimeapi.ContainerConfig, sec *runtimeapi.LinuxContainerSecurityContext) error {
	if o.user == "" {
		return nil
	}
	user, group, hasGroup := strings.Cut(o.user, ":")
	if !isAccount(user) || hasGroup && !isAccount(group) {
		return usagef("invalid -u %q: expected UID or user name, optionally with :GID or :group", o.user)
	}
	gid, err := strconv.ParseUint(group, 10, 32)
	if hasGroup && err != nil {
		ctr.Annotations[api.AnnotationUser] = o.user
		return nil
	}
	if uid, err := strconv.ParseUint(user, 10, 32); err == nil {
		sec.RunAsUser = &runtimeapi.Int64Value{Value: int64(uid)}
	} else {
		sec.RunAsUsername = user
	}
	if hasGroup {
		sec.RunAsGroup = &runtimeapi.Int64Value{Value: int64(gid)}
	}
	return nil
}

func isAccount(s string) bool { return s != "" && !strings.ContainsAny(s, ":/ \t\r\n") }

// cutOption returns the two sides of a --security-opt, which = or : divides.
func cutOption(opt string) (name, value string) {
	name, value, found := strings.Cut(opt, "=")
	if !found {
		name, value, _ = strings.Cut(opt, ":")
	}
	return name, value
}

// namesPath reports whether one of the patterns names a path.
func namesPath(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { ok, _ := filepath.Match(pattern, path); return ok })
}

func securityOption(sec *runtimeapi.LinuxContainerSecurityContext, opt string) error {
	name, value := cutOption(opt)
	switch name {
	case "no-new-privileges":
		on := value == ""
		if !on {
			var err error
			if on, err = strconv.ParseBool(value); err != nil {
				return usagef("invalid --security-opt %q: expected no-new-privileges=true or no-new-privileges=false", opt)
			}
		}
		sec.NoNewPrivs = on
	case "seccomp":
		switch value {
		case "unconfined":
			sec.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		case "default", "runtime/default":
			sec.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		default:
			path, err := filepath.Abs(value)
			if err != nil || value == "" {
				return usagef("invalid --security-opt %q: expected seccomp=FILE, seccomp=unconfined or seccomp=default", opt)
			}
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("--security-opt %s: %w", opt, err)
			}
			sec.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: path}
		}
	case "mask", "unmask":
		return paths(sec, opt, name, value)
	case "label", "apparmor", "proc-opts", "systempaths":
		if value == "unconfined" && name == "systempaths" {
			sec.MaskedPaths, sec.ReadonlyPaths = nil, nil
			return nil
		}
		if value == "disable" || value == "unconfined" {
			return nil // an unprivileged user's containers have none
		}
		return usagef("--security-opt %s is refused: %slabels and profiles of the kernel are the host administrator's", opt, notYet)
	default:
		return usagef("invalid --security-opt %q: expected seccomp=…, no-new-privileges, mask=… or unmask=…", opt)
	}
	return nil
}

// paths changes which paths of /proc and /sys are masked or read-only.
func paths(sec *runtimeapi.LinuxContainerSecurityContext, opt, name, value string) error {
	if value == "" {
		return usagef("invalid --security-opt %q: expected paths, separated by colons", opt)
	}
	list := strings.Split(value, ":")
	if name == "unmask" && value == "ALL" {
		sec.MaskedPaths, sec.ReadonlyPaths = nil, nil
		return nil
	}
	for _, p := range list {
		if !filepath.IsAbs(p) {
			return usagef("invalid --security-opt %q: %q is not an absolute path", opt, p)
		}
	}
	if name == "mask" {
		sec.MaskedPaths = slices.Concat(sec.MaskedPaths, list)
		return nil
	}
	unmasked := func(p string) bool { return namesPath(list, p) }
	sec.MaskedPaths = slices.DeleteFunc(slices.Clone(sec.MaskedPaths), unmasked)
	sec.ReadonlyPaths = slices.DeleteFunc(slices.Clone(sec.ReadonlyPaths), unmasked)
	return nil
}

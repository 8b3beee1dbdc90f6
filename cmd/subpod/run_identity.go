package main

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/config"
)

// checkIdentity validates the flags for namespaces and the like.
func (o *runOptions) checkIdentity() error {
	for _, n := range []struct{ flag, value, where string }{
		{"ipc", o.ipc, "its containers share one"}, {"pid", o.pid, "use \"subpod exec\" to look into a container"}, {"uts", o.uts, "its containers share one"},
	} {
		switch value, _, _ := strings.Cut(n.value, ":"); {
		case slices.Contains([]string{"", "private", "host"}, n.value), n.flag == "ipc" && n.value == "shareable":
		case n.flag == "ipc" && n.value == "none":
			return usagef("--ipc none is refused: %sa container always has a /dev/shm", notYet)
		case value == "container" || value == "pod" || value == "ns":
			return usagef("--%s %s is refused: a namespace is joined by joining its pod, with --pod; %s", n.flag, n.value, n.where)
		default:
			return usagef("invalid --%s %q: expected private or host", n.flag, n.value)
		}
	}
	if o.uts == "host" && o.hostname != "" {
		return usagef("--hostname and --uts host exclude each other")
	}
	if o.umask != "" {
		if n, err := strconv.ParseUint(o.umask, 8, 32); err != nil || n > 0o777 {
			return usagef("invalid --umask %q: expected an octal number such as 0027", o.umask)
		}
	}
	if o.oomScoreAdj < -1000 || o.oomScoreAdj > 1000 {
		return usagef("invalid --oom-score-adj %d: it is between -1000 and 1000", o.oomScoreAdj)
	}
	return nil
}

// fillIdentity sets namespaces, groups and the umask.
func (o *moreOptions) fillIdentity(pod *runtimeapi.PodSandboxConfig, ctr *runtimeapi.ContainerConfig, options *api.ContainerOptions) error {
	ns := ctr.Linux.SecurityContext.NamespaceOptions
	if o.ipc == "host" {
		ns.Ipc = runtimeapi.NamespaceMode_NODE
	}
	if o.pid == "host" {
		ns.Pid = runtimeapi.NamespaceMode_NODE
	}
	if o.uts == "host" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("--uts host: %w", err)
		}
		pod.Hostname = name
	}
	for _, g := range o.groupAdd {
		if g == "keep-groups" {
			return usagef("--group-add keep-groups is refused: the daemon starts containers, and your other groups are not its own")
		}
		if gid, err := strconv.ParseUint(g, 10, 32); err == nil {
			ctr.Linux.SecurityContext.SupplementalGroups = append(ctr.Linux.SecurityContext.SupplementalGroups, int64(gid))
			continue
		}
		if !isAccount(g) {
			return usagef("invalid --group-add %q: expected the name of a group or a GID", g)
		}
		options.Groups = append(options.Groups, g)
	}
	if o.umask != "" {
		n, _ := strconv.ParseUint(o.umask, 8, 32) // checked
		mask := uint32(n)
		options.Umask = &mask
	}
	return nil
}

// fillSecrets gives the container its secrets: as files, which the server writes, or in
// its environment.
func (o *moreOptions) fillSecrets(cfg *config.Config, ctr *runtimeapi.ContainerConfig, options *api.ContainerOptions) error {
	for _, s := range o.secrets {
		parts := strings.Split(s, ",")
		m := api.SecretMount{Name: parts[0], Mode: 0o444}
		kind := "mount"
		for _, part := range parts[1:] {
			name, value, _ := strings.Cut(part, "=")
			if err := secretOption(&m, &kind, name, value); err != nil {
				return usagef("invalid --secret %q: %w", s, err)
			}
		}
		if !isName(m.Name) {
			return usagef("invalid --secret %q: %q is not the name of a secret", s, m.Name)
		}
		text, err := readSecret(cfg, m.Name)
		if err != nil {
			return err
		}
		if kind == "env" {
			name := m.Path
			if name == "" {
				name = m.Name
			}
			ctr.Envs = append(ctr.Envs, &runtimeapi.KeyValue{Key: name, Value: text})
			options.SecretEnv = append(options.SecretEnv, name)
			continue
		}
		switch {
		case m.Path == "":
			m.Path = path.Join("/run/secrets", m.Name)
		case !path.IsAbs(m.Path):
			m.Path = path.Join("/run/secrets", m.Path)
		}
		options.Secrets = append(options.Secrets, m)
	}
	return nil
}

func secretOption(m *api.SecretMount, kind *string, name, value string) error {
	id := func(base int) (uint32, error) {
		n, err := strconv.ParseUint(value, base, 32)
		if err != nil {
			return 0, fmt.Errorf("%s=%s is not a number", name, value)
		}
		return uint32(n), nil
	}
	var err error
	switch name {
	case "type":
		if value != "mount" && value != "env" {
			return fmt.Errorf("type=%s: expected mount or env", value)
		}
		*kind = value
	case "target":
		m.Path = value
	case "uid":
		m.UID, err = id(10)
	case "gid":
		m.GID, err = id(10)
	case "mode":
		m.Mode, err = id(8)
	default:
		err = fmt.Errorf("unknown option %q; expected type, target, uid, gid or mode", name)
	}
	return err
}

package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/config"
)

// mountList collects the mounts of a container, from -v, --mount, --tmpfs and --secret.
type mountList struct {
	volumesDir string
	mounts     []*runtimeapi.Mount
	options    *api.ContainerOptions
}

func (o *runOptions) fillMounts(cfg *config.Config, ctr *runtimeapi.ContainerConfig, options *api.ContainerOptions) error {
	l := &mountList{volumesDir: volumesDir(cfg), options: options}
	for _, kind := range []struct {
		values []string
		add    func(string) error
	}{{o.volumes, l.addVolume}, {o.mounts, l.addMount}, {o.tmpfs, l.addTmpfs}} {
		for _, v := range kind.values {
			if err := kind.add(v); err != nil {
				return err
			}
		}
	}
	if err := o.fillZone(l); err != nil {
		return err
	}
	if o.readOnly && o.readOnlyTmpfs {
		l.addReadOnlyTmpfs()
	}
	ctr.Mounts = append(ctr.Mounts, l.mounts...)
	return nil
}

// addReadOnlyTmpfs mounts what programs write to where the root file system is read-only,
// unless something else is mounted there.
func (l *mountList) addReadOnlyTmpfs() {
	for _, dir := range []string{"/run", "/tmp", "/var/tmp"} {
		if !l.taken(dir) {
			l.options.Tmpfs = append(l.options.Tmpfs, api.Tmpfs{Path: dir, Options: []string{"rw", "nosuid", "nodev", "mode=1777"}})
		}
	}
}

func (l *mountList) taken(dir string) bool {
	return slices.ContainsFunc(l.mounts, func(m *runtimeapi.Mount) bool { return path.Clean(m.ContainerPath) == dir }) ||
		slices.ContainsFunc(l.options.Tmpfs, func(t api.Tmpfs) bool { return path.Clean(t.Path) == dir }) ||
		slices.ContainsFunc(l.options.Anonymous, func(p string) bool { return path.Clean(p) == dir })
}

// addVolume parses -v [SOURCE:]PATH[:OPTIONS]. A source that is not a path is the name of
// a volume, which the server makes if it does not exist; without one the container gets a
// volume of its own.
func (l *mountList) addVolume(s string) error {
	if path.IsAbs(s) && !strings.Contains(s, ":") {
		l.options.Anonymous = append(l.options.Anonymous, s)
		return nil
	}
	m, named, err := parseVolume(s, l.volumesDir)
	if err != nil {
		return err
	}
	l.add(m, named)
	return nil
}

func (l *mountList) add(m *runtimeapi.Mount, named *api.NamedVolume) {
	l.mounts = append(l.mounts, m)
	if named != nil {
		l.options.Volumes = append(l.options.Volumes, *named)
	}
}

// parseVolume parses SOURCE:PATH[:OPTIONS]. A source that is not a path is the name
// of a volume below dir.
func parseVolume(s, dir string) (*runtimeapi.Mount, *api.NamedVolume, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !filepath.IsAbs(parts[1]) {
		return nil, nil, usagef("invalid -v %q: expected HOST_PATH:PATH[:OPTIONS] or VOLUME:PATH[:OPTIONS] with PATH absolute", s)
	}
	m := &runtimeapi.Mount{ContainerPath: parts[1]}
	var named *api.NamedVolume
	switch {
	case strings.ContainsRune(parts[0], '/') || parts[0] == "." || parts[0] == "..":
		abs, err := existing(parts[0])
		if err != nil {
			return nil, nil, fmt.Errorf("-v %s: %w", s, err)
		}
		m.HostPath = abs
	case !isName(parts[0]):
		return nil, nil, usagef("invalid -v %q: %q is neither a path nor a valid name of a volume", s, parts[0])
	default:
		m.HostPath = filepath.Join(dir, parts[0])
		named = &api.NamedVolume{Name: parts[0], Path: m.ContainerPath}
	}
	if len(parts) == 3 {
		for option := range strings.SplitSeq(parts[2], ",") {
			if err := volumeOption(m, named, option); err != nil {
				return nil, nil, usagef("invalid -v %q: %v", s, err)
			}
		}
	}
	return m, named, nil
}

// existing returns the absolute path of a file or directory of the host.
func existing(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err == nil {
		_, err = os.Stat(abs)
	}
	return abs, err
}

// volumeOption applies one option of -v or --mount.
func volumeOption(m *runtimeapi.Mount, named *api.NamedVolume, option string) error {
	switch option {
	case "rw", "private", "rprivate", "rbind", "bind", "":
	case "z", "Z":
		m.SelinuxRelabel = true
	case "ro", "readonly":
		m.Readonly = true
	case "slave", "rslave":
		m.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case "shared", "rshared":
		m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	case "nocopy":
		if named == nil {
			return errors.New("nocopy is an option of named volumes")
		}
		named.NoCopy = true
	case "copy":
	case "exec", "noexec", "dev", "nodev", "suid", "nosuid", "noatime":
		m.MountOptions = append(m.MountOptions, option)
	case "U", "O", "idmap":
		return fmt.Errorf("the option %s is refused: %s", option, refusedVolumeOptions[option])
	default:
		return fmt.Errorf("unknown option %q; expected ro, rw, noexec, nodev, nosuid, nocopy, rslave or rshared", option)
	}
	return nil
}

var refusedVolumeOptions = map[string]string{
	"U":     notYet + "the owners of a volume are not changed; use \"subpod unshare chown\"",
	"O":     notYet + "an overlay over a directory of the host is not mounted",
	"idmap": "the kernel refuses an ID-mapped mount of the host's file systems to an unprivileged user",
}

// addMount parses --mount type=TYPE,NAME[=VALUE]…
func (l *mountList) addMount(s string) error {
	kind, values := "volume", map[string]string{}
	var options []string
	for part := range strings.SplitSeq(s, ",") {
		name, value, given := strings.Cut(part, "=")
		switch name {
		case "type":
			kind = value
		case "src", "source":
			values["src"] = value
		case "dst", "destination", "target":
			values["dst"] = value
		case "ro", "readonly", "rw":
			if flag := !given || value == "true"; flag == (name != "rw") {
				options = append(options, "ro")
			}
		case "bind-propagation":
			options = append(options, value)
		case "volume-nocopy":
			options = append(options, "nocopy")
		case "subpath", "volume-subpath", "tmpfs-size", "tmpfs-mode", "size", "mode":
			values[strings.TrimPrefix(strings.TrimPrefix(name, "tmpfs-"), "volume-")] = value
		case "consistency", "relabel", "z", "Z":
		default:
			if given {
				part = name + "=" + value
			}
			options = append(options, part)
		}
	}
	if !path.IsAbs(values["dst"]) {
		return usagef("invalid --mount %q: it needs dst=PATH, an absolute path in the container", s)
	}
	if err := l.mountOf(kind, values, options); err != nil {
		return usagef("invalid --mount %q: %w", s, err)
	}
	return nil
}

func (l *mountList) mountOf(kind string, values map[string]string, options []string) error {
	m, dst := &runtimeapi.Mount{ContainerPath: values["dst"]}, values["dst"]
	var named *api.NamedVolume
	switch kind {
	case "tmpfs":
		for _, n := range []string{"size", "mode"} {
			if v := values[n]; v != "" {
				options = append(options, n+"="+v)
			}
		}
		return l.tmpfsOn(dst, options)
	case "bind":
		abs, err := existing(values["src"])
		if err != nil || values["src"] == "" {
			return errors.Join(errors.New("type=bind needs src=PATH on the host"), err)
		}
		m.HostPath = abs
	case "volume":
		if values["src"] == "" {
			l.options.Anonymous = append(l.options.Anonymous, dst)
			return nil
		}
		if !isName(values["src"]) {
			return fmt.Errorf("%q is not a valid name of a volume", values["src"])
		}
		m.HostPath = filepath.Join(l.volumesDir, values["src"])
		named = &api.NamedVolume{Name: values["src"], Path: dst}
	case "image":
		if values["src"] == "" {
			return errors.New("type=image needs src=IMAGE")
		}
		m.Image, m.ImageSubPath, m.Readonly = &runtimeapi.ImageSpec{Image: values["src"]}, values["subpath"], true
	case "devpts", "glob", "ramfs", "artifact":
		return fmt.Errorf("type=%s is refused: %sonly bind, volume, tmpfs and image are mounted", kind, notYet)
	default:
		return fmt.Errorf("unknown type %q; expected bind, volume, tmpfs or image", kind)
	}
	for _, option := range options {
		if err := volumeOption(m, named, option); err != nil {
			return err
		}
	}
	if kind != "image" && values["subpath"] != "" {
		return fmt.Errorf("subpath is refused: %sof images only", notYet)
	}
	l.add(m, named)
	return nil
}

// addTmpfs parses --tmpfs PATH[:OPTIONS].
func (l *mountList) addTmpfs(s string) error {
	dst, text, _ := strings.Cut(s, ":")
	if !path.IsAbs(dst) {
		return usagef("invalid --tmpfs %q: expected an absolute PATH[:OPTIONS]", s)
	}
	var options []string
	if text != "" {
		options = strings.Split(text, ",")
	}
	if err := l.tmpfsOn(dst, options); err != nil {
		return usagef("invalid --tmpfs %q: %w", s, err)
	}
	return nil
}

// tmpfsOn adds a tmpfs; it is restricted as Podman's is, unless asked otherwise.
func (l *mountList) tmpfsOn(dst string, options []string) error {
	t := api.Tmpfs{Path: dst, Options: []string{"nosuid", "nodev", "noexec"}}
	mode := false
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "exec", "dev", "suid":
			t.Options = slices.DeleteFunc(t.Options, func(has string) bool { return has == "no"+name })
		case "notmpcopyup", "nosuid", "nodev", "noexec", "":
		case "size":
			if strings.HasSuffix(value, "%") {
				t.Options = append(t.Options, o)
				continue
			}
			n, err := kube.ParseBytes(value)
			if err != nil || n <= 0 {
				return fmt.Errorf("size %q is not a number of bytes such as 64m", value)
			}
			t.Options = append(t.Options, "size="+strconv.FormatInt(n, 10))
		case "mode":
			t.Options, mode = append(t.Options, o), true
		case "U", "chown", "tmpcopyup":
			return fmt.Errorf("the option %s is refused: %sa tmpfs begins empty", name, notYet)
		default:
			t.Options = append(t.Options, o)
		}
	}
	if !mode {
		t.Options = append(t.Options, "mode=1777")
	}
	l.options.Tmpfs = append(l.options.Tmpfs, t)
	return nil
}

// zoneInfo is where the host has its time zones.
const zoneInfo = "/usr/share/zoneinfo"

// fillZone gives the container the file of a time zone of the host's.
func (o *moreOptions) fillZone(l *mountList) error {
	if o.tz == "" {
		return nil
	}
	file := "/etc/localtime"
	if o.tz != "local" {
		if !filepath.IsLocal(o.tz) {
			return usagef("invalid --tz %q: expected a time zone such as Europe/Berlin, or local", o.tz)
		}
		file = filepath.Join(zoneInfo, o.tz)
	}
	at, err := filepath.EvalSymlinks(file)
	if st, statErr := os.Stat(at); err == nil && (statErr != nil || !st.Mode().IsRegular()) {
		err = errors.New("it is not a file")
	}
	if err != nil {
		return usagef("--tz %s: the host does not have this time zone: %w", o.tz, err)
	}
	l.mounts = append(l.mounts, &runtimeapi.Mount{HostPath: at, ContainerPath: "/etc/localtime", Readonly: true})
	return nil
}

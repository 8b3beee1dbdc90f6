package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// moreOptions are the flags of "run" that are asked for less often.
type moreOptions struct {
	mounts, tmpfs, devices, gpus, volumesFrom   []string
	ulimits, sysctls, groupAdd, secrets         []string
	expose, annotations, labelFiles, logOpts    []string
	attach, unsetEnv                            []string
	init, publishAll, replace, removeImage      bool
	unsetAll, envHost, sigProxy, readOnlyTmpfs  bool
	shmSize, memorySwap, memoryReservation      string
	cpusetCPUs, cpusetMems, cgroupParent        string
	stopSignal, umask, tz, cidFile, pidFile     string
	logDriver, detachKeys, pod, ipc, pid, uts   string
	userns                                      string
	pidsLimit, cpuPeriod, cpuQuota, stopTimeout int64
	cpuShares                                   uint64
	oomScoreAdj                                 int64
	health                                      healthOptions

	platformFlags
	wanted   string // the platform that they ask for
	emulated bool   // it is run by an emulator

	given func(flag string) bool // whether a flag was given
	podID string                 // that of the pod which --pod names
}

func (o *runOptions) addMoreFlags(f *pflag.FlagSet) {
	o.addStorageFlags(f)
	o.addLimitFlags(f)
	o.addIdentityFlags(f)
	o.addLifeFlags(f)
	o.health.addFlags(f)
	addRefused(f, refusedRun)
}

func (o *moreOptions) addStorageFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.mounts, "mount", nil, "type=bind|volume|tmpfs|image,src=…,dst=…[,ro]…")
	f.StringArrayVar(&o.tmpfs, "tmpfs", nil, "PATH[:OPTIONS]: a file system in memory (size=64m,mode=1777 …)")
	f.StringArrayVar(&o.volumesFrom, "volumes-from", nil, "CONTAINER[:ro]: the mounts of another container")
	f.StringArrayVar(&o.secrets, "secret", nil, "NAME[,type=env|mount][,target=…][,uid=,gid=,mode=] (see \"subpod secret\")")
	f.StringSliceVar(&o.devices, "device", nil, "HOST_DEVICE[:PATH[:rwm]], or a CDI device (vendor.com/class=name)")
	f.StringArrayVar(&o.gpus, "gpus", nil, "all, or the names of NVIDIA GPUs, by CDI")
	f.StringVar(&o.shmSize, "shm-size", "", "size of /dev/shm (default 64m)")
	f.BoolVar(&o.readOnlyTmpfs, "read-only-tmpfs", true, "with --read-only, mount tmpfs on /run, /tmp and /var/tmp")
}

func (o *moreOptions) addLimitFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&o.ulimits, "ulimit", nil, "NAME=SOFT[:HARD], such as nofile=1024:2048")
	f.StringArrayVar(&o.sysctls, "sysctl", nil, "NAME=VALUE: a kernel parameter of the pod's namespaces")
	o.addResourceFlags(f)
	f.Int64Var(&o.oomScoreAdj, "oom-score-adj", 0, "-1000 to 1000: the higher, the sooner it is killed when memory is short")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "cgroup below which the pod's is made")
}

// addResourceFlags adds the limits that "subpod update" changes, too.
func (o *moreOptions) addResourceFlags(f *pflag.FlagSet) {
	f.StringVar(&o.memorySwap, "memory-swap", "", "memory and swap together, -1 for no bound")
	f.StringVar(&o.memoryReservation, "memory-reservation", "", "memory that is protected from reclaim")
	f.Int64Var(&o.pidsLimit, "pids-limit", 0, "maximum number of processes, -1 for no bound")
	f.Uint64VarP(&o.cpuShares, "cpu-shares", "c", 0, "relative weight of CPU time (1024 is the usual one)")
	f.Int64Var(&o.cpuPeriod, "cpu-period", 0, "period of the CPU limit, in microseconds")
	f.Int64Var(&o.cpuQuota, "cpu-quota", 0, "CPU time in each period, in microseconds")
	f.StringVar(&o.cpusetCPUs, "cpuset-cpus", "", "CPUs to run on, such as 0-2,4")
	f.StringVar(&o.cpusetMems, "cpuset-mems", "", "memory nodes to use")
}

func (o *moreOptions) addIdentityFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&o.groupAdd, "group-add", nil, "supplementary group, by name or GID")
	f.StringVar(&o.userns, "userns", "", "host, keep-id[:uid=,gid=], nomap or auto[:size=]: which user you are in the container")
	f.StringVar(&o.ipc, "ipc", "", "private (the default), shareable or host (the node's)")
	f.StringVar(&o.pid, "pid", "", "private (the default) or host (the node's)")
	f.StringVar(&o.uts, "uts", "", "private (the default) or host (the node's host name)")
	f.StringVar(&o.pod, "pod", "", "run in this pod, which shares its network; new:NAME makes it")
	f.StringVar(&o.umask, "umask", "", "file mode mask of the command (default 0022)")
	f.StringVar(&o.tz, "tz", "", "time zone such as Europe/Berlin, or local")
	f.StringArrayVar(&o.unsetEnv, "unsetenv", nil, "leave out this variable of the image")
	f.BoolVar(&o.unsetAll, "unsetenv-all", false, "leave out all variables of the image and the defaults")
	f.BoolVar(&o.envHost, "env-host", false, "copy the whole environment of this command")
	f.StringArrayVar(&o.annotations, "annotation", nil, "annotation as NAME=VALUE")
	f.StringSliceVar(&o.labelFiles, "label-file", nil, "file with NAME=VALUE lines")
	f.BoolVarP(&o.publishAll, "publish-all", "P", false, "publish the ports that the image exposes, on free ports of the host")
	f.StringSliceVar(&o.expose, "expose", nil, "PORT[-PORT][/udp]: a port that -P publishes, too")
}

func (o *moreOptions) addLifeFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.init, "init", false, "run an init process, which forwards signals and reaps processes")
	f.StringVar(&o.stopSignal, "stop-signal", "", "signal that stops the container (default: the image's, else SIGTERM)")
	f.Int64Var(&o.stopTimeout, "stop-timeout", 10, "seconds that \"stop\" waits before it kills the container")
	o.platformFlags.add(f)
	f.StringVar(&o.cidFile, "cidfile", "", "write the container's ID to this new file")
	f.StringVar(&o.pidFile, "pidfile", "", "write the PID of the container's first process on the host to this file")
	f.StringVar(&o.logDriver, "log-driver", "k8s-file", "k8s-file (json-file means the same) or none")
	f.StringSliceVar(&o.logOpts, "log-opt", nil, "max-size=SIZE of the log (default 100m with -d; -1 for no bound)")
	f.StringVar(&o.detachKeys, "detach-keys", defaultDetachKeys, "keys that detach from the container; \"\" for none")
	f.BoolVar(&o.sigProxy, "sig-proxy", true, "forward signals to the command")
	f.StringSliceVarP(&o.attach, "attach", "a", nil, "stdin, stdout or stderr: what to attach to (default: all)")
	f.BoolVar(&o.replace, "replace", false, "remove the pod that has the name, with --pod the container")
	f.BoolVar(&o.removeImage, "rmi", false, "with --rm, also remove the image afterwards, unless it is used")
}

// refused are flags of Podman's that have no meaning here, by name, with the reason. They
// are known so that nobody has to guess whether an unknown flag was a typing error.
type refused map[string]string

const notYet = "not yet: "

// addRefused adds the flags so that their use is an error which gives the reason.
func addRefused(f *pflag.FlagSet, list refused) {
	for name, reason := range list {
		name, short, _ := strings.Cut(name, "/")
		if f.Lookup(name) != nil {
			continue
		}
		if short != "" && f.ShorthandLookup(short) != nil {
			short = "" // that of another flag here
		}
		flag := f.VarPF(&refusedFlag{reason}, name, short, "")
		flag.NoOptDefVal = "true"
		flag.Hidden = true
	}
}

// refusedFlag is the value of a flag that cannot be set.
type refusedFlag struct{ reason string }

// errRefused reports that a flag is known and cannot be honoured.
var errRefused = errors.New("refused")

func (f *refusedFlag) String() string   { return "" }
func (f *refusedFlag) Type() string     { return "refused" }
func (f *refusedFlag) Set(string) error { return fmt.Errorf("%w: %s", errRefused, f.reason) }

// reasonNoRoot and the others are said of several flags.
const (
	reasonDeviceCgroup = "limits on devices need a controller that an unprivileged user is never given"
	reasonRegistry     = "the registry's settings are those of registries.conf, certs.d and auth.json (see \"subpod login\")"
)

var refusedRun = refused{
	"health-log-destination":  notYet + "the last output of a check is in \"subpod inspect\"",
	"health-max-log-count":    notYet + "the last output of a check is in \"subpod inspect\"",
	"health-max-log-size":     notYet + "the last output of a check is in \"subpod inspect\"",
	"health-startup-cmd":      notYet + "use --health-start-period",
	"health-startup-interval": notYet + "use --health-start-period",
	"health-startup-retries":  notYet + "use --health-start-period",
	"health-startup-success":  notYet + "use --health-start-period",
	"health-startup-timeout":  notYet + "use --health-start-period",
	"authfile":                "set images.auth_file in the configuration: the server pulls, not this command",
	"blkio-weight":            reasonDeviceCgroup,
	"blkio-weight-device":     reasonDeviceCgroup,
	"cert-dir":                reasonRegistry,
	"cgroup-conf":             notYet + "control files of the cgroup cannot be set by name",
	"cgroupns":                "a container always has a cgroup namespace of its own",
	"cgroups":                 "the server decides from what is delegated to the user (see \"subpod info\")",
	"chrootdirs":              notYet + "the files of the pod are bound in its own root only",
	"conmon-pidfile":          "the monitor is the server's own affair and may be another program",
	"cpu-rt-period":           "cgroup v2 has no real-time limits",
	"cpu-rt-runtime":          "cgroup v2 has no real-time limits",
	"creds":                   reasonRegistry,
	"decryption-key":          notYet + "encrypted images are not pulled",
	"device-cgroup-rule":      reasonDeviceCgroup,
	"device-read-bps":         reasonDeviceCgroup,
	"device-read-iops":        reasonDeviceCgroup,
	"device-write-bps":        reasonDeviceCgroup,
	"device-write-iops":       reasonDeviceCgroup,
	"disable-content-trust":   "it has no meaning; what is trusted is in policy.json",
	"env-merge":               notYet + "variables of the image cannot be used in others",
	"gidmap":                  notYet + "use --userns=keep-id:gid=",
	"group-entry":             notYet + "the image's group file is used as it is",
	"hosts-file":              notYet + "use --add-host",
	"hostuser":                notYet + "the image's passwd file is used as it is",
	"http-proxy":              "proxy variables are not passed on by themselves: use -e http_proxy",
	"image-volume":            notYet + "volumes of the image are always made; mount a tmpfs on the path to replace one",
	"init-path":               "the init process of --init comes with subpod",
	"link-local-ip":           "it has no effect in Podman either",
	"memory-swappiness":       "cgroup v2 has no swappiness",
	"no-hostname":             notYet + "/etc/hostname is always the pod's",
	"no-hosts":                notYet + "/etc/hosts is always the pod's; mount a file on it to replace it",
	"oom-kill-disable":        "cgroup v2 cannot do it",
	"passwd":                  "no entry is added to the image's passwd file",
	"passwd-entry":            notYet + "the image's passwd file is used as it is",
	"personality":             notYet + "the execution domain cannot be set",
	"pod-id-file":             notYet + "use --pod with the ID",
	"preserve-fd":             "the daemon starts containers; it does not have this command's descriptors",
	"preserve-fds":            "the daemon starts containers; it does not have this command's descriptors",
	"rdt-class":               "it needs root on the host",
	"requires":                notYet + "start the others first",
	"retry":                   notYet + "a failed pull is tried as often as the server thinks fit",
	"retry-delay":             notYet + "a failed pull is tried as often as the server thinks fit",
	"rootfs":                  "only images are run",
	"sdnotify":                "the daemon is the service; it has no socket of this command's",
	"seccomp-policy":          "use --security-opt seccomp=FILE",
	"shm-size-systemd":        notYet + "systemd's own mounts are not prepared",
	"subgidname":              "the node has one range of IDs, the user's own",
	"subuidname":              "the node has one range of IDs, the user's own",
	"systemd":                 notYet + "a container is not prepared for systemd",
	"timeout":                 notYet + "use timeout(1) in the container",
	"tls-verify":              reasonRegistry,
	"uidmap":                  notYet + "use --userns=keep-id:uid=",
}

// flagError returns the error of parsing a command's flags as a usage error.
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) && errors.Is(err, errRefused) {
		return usagef("--%s is %w", invalid.GetFlag().Name, invalid.Unwrap())
	}
	return usageError{fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
}

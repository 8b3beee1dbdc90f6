package ocispec

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// handleCall opens a file by a number instead of a path. Those of namespaces can be
// guessed (nsfs, Linux 6.18): with CAP_SYS_ADMIN, a container in the node's user
// namespace so enters the node's mount namespace, and has the user's home. Those of
// files lead out of a bind mount for CAP_DAC_READ_SEARCH. So only privileged containers
// have it, whatever capabilities others add and whatever their profile allows.
const handleCall = "open_by_handle_at"

// handleCaps are the capabilities without either of which the kernel refuses it, and
// the one that could make what joins the container do it.
var handleCaps = setOf([]string{"CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"})

// onlyHandles is the profile of a container that asks for none and has handleCaps.
const onlyHandles = `{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [
	{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
	{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}], "syscalls": []}`

// unconfined returns the profile of a container that has asked to have none; nil when
// it has none then. Without handleCaps it is unconfined as in Kubernetes.
func (b *builder) unconfined() []byte {
	if setOf(b.spec.Process.Capabilities.Bounding)&handleCaps == 0 {
		return nil
	}
	if !b.Host.Seccomp {
		b.warn("this kernel has no seccomp: the container's capabilities let it open files and namespaces by handle")
		return nil
	}
	return []byte(onlyHandles)
}

// refuseHandles takes handleCall out of all rules of a profile, and adds one that
// refuses it where the profile would allow it by default.
func refuseHandles(p *specs.LinuxSeccomp) {
	var rules []specs.LinuxSyscall
	for _, r := range p.Syscalls {
		r.Names = slices.DeleteFunc(slices.Clone(r.Names), func(name string) bool { return name == handleCall })
		if len(r.Names) > 0 {
			rules = append(rules, r)
		}
	}
	switch p.DefaultAction {
	case specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap:
	default:
		errno := uint(unix.EPERM)
		rules = append(rules, specs.LinuxSyscall{Names: []string{handleCall}, Action: specs.ActErrno, ErrnoRet: &errno})
	}
	p.Syscalls = rules
}

// Confined reports whether not only the container itself but all that joins it is to be
// without handleCall: a container of the pod that may trace could make it do the call.
// Privileged containers are not, nor are those that are unconfined and add none of
// handleCaps: Kubernetes' users expect those to have no filter at all.
func Confined(sec *runtimeapi.LinuxContainerSecurityContext) bool {
	if sec.GetPrivileged() {
		return false
	}
	//lint:ignore SA1019 deprecated, but older clients send it
	kind, _, err := profile(sec.GetSeccomp(), sec.GetSeccompProfilePath())
	if err != nil || kind != runtimeapi.SecurityProfile_Unconfined {
		return true
	}
	c := sec.GetCapabilities()
	set, all, err := parseCaps(slices.Concat(c.GetAddCapabilities(), c.GetAddAmbientCapabilities()))
	return err != nil || all || set&handleCaps != 0
}

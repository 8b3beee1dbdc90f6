package ocispec

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// capNames are all capabilities by number (linux/capability.h).
var capNames = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID
	CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST
	CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT
	CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME
	CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE
	CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF
	CAP_CHECKPOINT_RESTORE`)

// defaultCaps is what a container has when nothing is asked: the set that Docker
// and the CRI runtimes agree on.
var defaultCaps = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID
	CAP_SETUID CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SYS_CHROOT CAP_MKNOD CAP_AUDIT_WRITE CAP_SETFCAP`)

const allCaps = "ALL"

func boundingSet(status []byte) ([]string, error) {
	for line := range bytes.Lines(status) {
		hex, ok := bytes.CutPrefix(line, []byte("CapBnd:"))
		if !ok {
			continue
		}
		set, err := strconv.ParseUint(string(bytes.TrimSpace(hex)), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("own bounding set: %w", err)
		}
		var out []string
		for i, name := range capNames {
			if set&(1<<i) != 0 {
				out = append(out, name)
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("no CapBnd in /proc/self/status")
}

// capSet is a set of capabilities by number.
type capSet uint64

func (s capSet) names() []string {
	out := []string{}
	for i, name := range capNames {
		if s&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

func setOf(names []string) (s capSet) {
	for _, name := range names {
		if i := slices.Index(capNames, name); i >= 0 {
			s |= 1 << i
		}
	}
	return s
}

// parseCaps reads names with or without "CAP_", in any case.
func parseCaps(names []string) (set capSet, all bool, err error) {
	for _, name := range names {
		upper := strings.ToUpper(strings.TrimSpace(name))
		if upper == allCaps || upper == "CAP_"+allCaps {
			all = true
			continue
		}
		i := slices.Index(capNames, "CAP_"+strings.TrimPrefix(upper, "CAP_"))
		if i < 0 {
			return 0, false, invalid("unknown capability %.40q", name)
		}
		set |= 1 << i
	}
	return set, all, nil
}

// capabilities follows the comment of the CRI message Capability. ALL comes before
// names, in both lists: add ALL, drop X is everything but X; drop ALL, add X is X
// alone; a name in both lists is dropped. One difference: a capability of
// add_capabilities does not become inheritable. It would gain a non-root process
// nothing but a set-capability file's grant (CVE-2022-24769), and the other CRI
// runtimes do not do it either. add_ambient_capabilities does: the kernel demands it.
func (b *builder) capabilities() error {
	all := setOf(b.Host.Bounding)
	if b.sec.Privileged {
		b.setCapabilities(all, 0)
		return nil
	}
	c := b.sec.GetCapabilities()
	add, addAll, err := parseCaps(c.GetAddCapabilities())
	if err != nil {
		return err
	}
	ambient, ambientAll, err := parseCaps(c.GetAddAmbientCapabilities())
	if err != nil {
		return err
	}
	drop, dropAll, err := parseCaps(c.GetDropCapabilities())
	if err != nil {
		return err
	}
	have := setOf(defaultCaps)
	if ambientAll {
		ambient |= all
	}
	if addAll || ambientAll {
		have = all
	}
	if dropAll {
		have = 0
	}
	ambient &^= drop
	have = (have | add | ambient) &^ drop
	if missing := (add | ambient) &^ drop &^ all; missing != 0 {
		b.warn("capabilities %v cannot be given: this process does not have them itself", missing.names())
	}
	b.setCapabilities(have&all, ambient&all)
	return nil
}

func (b *builder) setCapabilities(have, ambient capSet) {
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: have.names(), Effective: have.names(), Permitted: have.names(),
		Inheritable: ambient.names(), Ambient: ambient.names(),
	}
}

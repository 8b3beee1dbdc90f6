package ocispec

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Real-time signals as libc numbers them: the kernel's first two are its own.
const sigRTMin, sigRTMax = 34, 64

// stopSignal is the container's, else the image's, else SIGTERM.
func (b *builder) stopSignal() (syscall.Signal, error) {
	if s := b.Container.StopSignal; s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		name := strings.NewReplacer("SIGNAL_", "", "PLUS", "+", "MINUS", "-").Replace(s.String())
		sig, ok := ParseSignal(name)
		if !ok {
			return 0, invalid("stop signal %q", s)
		}
		return sig, nil
	}
	if b.Image.StopSignal == "" {
		return unix.SIGTERM, nil
	}
	sig, ok := ParseSignal(b.Image.StopSignal)
	if !ok {
		b.warn("the image's stop signal %.40q is unknown: SIGTERM is used", b.Image.StopSignal)
		return unix.SIGTERM, nil
	}
	return sig, nil
}

// ParseSignal understands "SIGTERM", "TERM", "15", "SIGRTMIN+3" and "SIGRTMAX-1".
func ParseSignal(s string) (syscall.Signal, bool) {
	if n, err := strconv.Atoi(s); err == nil {
		return syscall.Signal(n), n >= 1 && n <= sigRTMax
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if sig, ok := realTime(name); ok {
		return sig, true
	}
	// Other names of the same signals (signal(7)).
	if other, ok := map[string]string{"SIGCLD": "SIGCHLD", "SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO"}[name]; ok {
		name = other
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, true
	}
	return 0, false
}

func realTime(name string) (syscall.Signal, bool) {
	for prefix, base := range map[string]int{"SIGRTMIN": sigRTMin, "SIGRTMAX": sigRTMax} {
		offset, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		n := 0
		if offset != "" {
			var err error
			if n, err = strconv.Atoi(offset); err != nil || offset[0] != '+' && offset[0] != '-' {
				return 0, false
			}
		}
		sig := base + n
		return syscall.Signal(sig), sig >= sigRTMin && sig <= sigRTMax
	}
	return 0, false
}

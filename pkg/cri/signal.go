package cri

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The real-time signals as signal(7) numbers them with the C library, which
// keeps 32 and 33 for itself.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// criSignal returns the CRI's name of a signal; SIGNAL_RUNTIME_DEFAULT when it has none.
func criSignal(sig syscall.Signal) runtimeapi.Signal {
	name := unix.SignalName(sig)
	switch n := int(sig); {
	case n == sigRTMin:
		name = "SIGRTMIN"
	case n == sigRTMax:
		name = "SIGRTMAX"
	case n > sigRTMin && n <= sigRTMin+15:
		name = fmt.Sprintf("SIGRTMINPLUS%d", n-sigRTMin)
	case n > sigRTMin+15 && n < sigRTMax:
		name = fmt.Sprintf("SIGRTMAXMINUS%d", sigRTMax-n)
	}
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}

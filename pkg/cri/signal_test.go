package cri

import (
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCRISignal(t *testing.T) {
	for sig, want := range map[syscall.Signal]runtimeapi.Signal{
		syscall.SIGTERM: runtimeapi.Signal_SIGNAL_SIGTERM,
		syscall.SIGKILL: runtimeapi.Signal_SIGNAL_SIGKILL,
		syscall.SIGUSR1: runtimeapi.Signal_SIGNAL_SIGUSR1,
		34:              runtimeapi.Signal_SIGNAL_SIGRTMIN,
		35:              runtimeapi.Signal_SIGNAL_SIGRTMINPLUS1,
		37:              runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, // systemd's
		49:              runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15,
		50:              runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14,
		63:              runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS1,
		64:              runtimeapi.Signal_SIGNAL_SIGRTMAX,
		0:               runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT,
		32:              runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT,
		65:              runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT,
	} {
		if got := criSignal(sig); got != want {
			t.Errorf("signal %d is %v, want %v", int(sig), got, want)
		}
	}
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if sig != 32 && sig != 33 && criSignal(sig) == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			t.Errorf("signal %d has no name", int(sig))
		}
	}
}

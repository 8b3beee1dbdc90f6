package rootless

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Socket activation (sd_listen_fds(3)): the service manager listens on the CRI socket,
// and passes it to the daemon as descriptor 3. Rootlesskit hands it on to the child and
// to the supervisor, which holds it for all servers under HeldCRI: no client is refused
// while there is none.

// HeldCRI is the name under which the supervisor holds the CRI socket of the service
// manager. Servers take it and leave it there.
const HeldCRI = "cri"

const (
	envListenPID = "LISTEN_PID"
	envListenFDs = "LISTEN_FDS"
	// listenFD is the first descriptor of socket activation.
	listenFD = 3
	// anyPID stands for LISTEN_PID once the daemon has taken the socket: the processes
	// that it is handed on to have others.
	anyPID = "0"
)

// takeActivation prepares the handing on of a socket of the service manager, and says
// whether there is one. Without one, or with several or one of another kind, the
// variables are removed.
func takeActivation() (bool, error) {
	pid, count := os.Getenv(envListenPID), os.Getenv(envListenFDs)
	for _, name := range []string{envListenPID, envListenFDs, "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return false, err
		}
	}
	if pid != strconv.Itoa(os.Getpid()) || count == "" {
		return false, nil
	}
	if count != "1" {
		return false, fmt.Errorf("the service manager passes %s sockets: subpod takes the one of the CRI only (subpod.socket); if no service manager has set LISTEN_FDS, unset it", count)
	}
	if err := isListener(listenFD); err != nil {
		return false, fmt.Errorf("%w; if no service manager has set LISTEN_FDS, unset it", err)
	}
	unix.CloseOnExec(listenFD)
	for name, value := range map[string]string{envListenPID: anyPID, envListenFDs: "1"} {
		if err := os.Setenv(name, value); err != nil {
			return false, err
		}
	}
	return true, nil
}

// keepActivation has the socket stay open in the program that this process becomes.
func keepActivation() {
	if os.Getenv(envListenPID) == anyPID && os.Getenv(envListenFDs) == "1" {
		os.Setenv(envListenPID, strconv.Itoa(os.Getpid()))
		_, _ = unix.FcntlInt(listenFD, unix.F_SETFD, 0)
	}
}

// isListener checks that a descriptor is a unix stream socket that listens.
func isListener(fd int) error {
	for option, want := range map[int]int{unix.SO_DOMAIN: unix.AF_UNIX, unix.SO_TYPE: unix.SOCK_STREAM, unix.SO_ACCEPTCONN: 1} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		if err != nil {
			return fmt.Errorf("look at the socket of the service manager: %w", err)
		}
		if got != want {
			return fmt.Errorf("the socket of the service manager is no listening unix stream socket (subpod.socket)")
		}
	}
	return nil
}

// inheritActivation returns the socket that rootlesskit has handed on to this process, the
// supervisor; nil without one. No program after it gets the variables.
func inheritActivation() *os.File {
	count := os.Getenv(envListenFDs)
	pid := os.Getenv(envListenPID)
	os.Unsetenv(envListenFDs)
	os.Unsetenv(envListenPID)
	if count != "1" || pid != anyPID || isListener(listenFD) != nil {
		return nil
	}
	unix.CloseOnExec(listenFD)
	return os.NewFile(listenFD, HeldCRI)
}

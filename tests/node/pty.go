package node

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Pty opens a pseudo terminal of the given size: what a user types is written to
// user, and program is the standard streams of what runs in it.
func Pty(rows, cols uint16) (user, program *os.File, err error) {
	user, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(user.Fd())
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		user.Close()
		return nil, nil, fmt.Errorf("unlock the terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		user.Close()
		return nil, nil, fmt.Errorf("number of the terminal: %w", err)
	}
	if err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		user.Close()
		return nil, nil, fmt.Errorf("size of the terminal: %w", err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		user.Close()
		return nil, nil, err
	}
	return user, program, nil
}

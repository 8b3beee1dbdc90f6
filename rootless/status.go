package rootless

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

const (
	// statusInterval is the pause between two looks at what the service manager is told,
	// where it asks for no shorter one (WatchdogSec=).
	statusInterval = 15 * time.Second
	// startingInterval is that until the first server serves.
	startingInterval = 500 * time.Millisecond
	// maxStatus bounds the status text, in bytes.
	maxStatus = 200
)

// fileFailure is where the server notes why it did not come to serve.
const fileFailure = "start-failure"

// reportStatus tells the service manager until stop is closed that the process which keeps
// the node is alive (WATCHDOG=1) and what its server does (STATUS=). It does nothing where
// no manager asked. A server that hangs costs no containers, so it is not what the
// watchdog watches.
func reportStatus(c Config, stop <-chan struct{}) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	interval, watched := watchdog(os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID"), os.Getpid())
	last := ""
	for {
		message := "STATUS=" + statusText(c.RunDir)
		if message == last {
			message = ""
		} else {
			last = message
		}
		if watched {
			message = strings.TrimSuffix("WATCHDOG=1\n"+message, "\n")
		}
		if message != "" {
			if err := Notify(message); err != nil {
				c.Log.Debug("the service manager does not know the daemon's status", "error", err)
			}
		}
		pause := interval
		if readyTime(c.RunDir).IsZero() {
			pause = min(pause, startingInterval)
		}
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
	}
}

// watchdog returns the pause between two signs of life, half of what sd_watchdog_enabled(3)
// gives, and whether they are asked of this process.
func watchdog(usec, pid string, own int) (time.Duration, bool) {
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || pid != "" && pid != strconv.Itoa(own) {
		return statusInterval, false
	}
	n = min(n, statusInterval.Microseconds()*2) // and no overflow
	return max(time.Duration(n)*time.Microsecond/2, time.Millisecond), true
}

// statusText returns one line on the servers of the node of runDir.
func statusText(runDir string) string {
	failed := filepath.Join(nodeDir(runDir), fileFailure)
	ready, failure, degraded := readyTime(runDir), readNote(failed), readNote(filepath.Join(nodeDir(runDir), fileDegraded))
	// A failure stays noted when a later server serves with another configuration.
	if st, err := os.Lstat(failed); err != nil || st.ModTime().Before(ready) {
		failure = ""
	}
	switch {
	case ready.IsZero():
		return "starting"
	case failure != "":
		return "containers run, but the server does not start: " + failure
	case degraded != "":
		return "serving, not with the configuration on disk: " + degraded
	}
	return "serving"
}

// readNote returns the beginning of a file that processes of the node can write, as one
// line. It waits for no FIFO, and follows no link: this process sees more than the node.
func readNote(name string) string {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	buf := make([]byte, maxStatus)
	n, _ := f.Read(buf)
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(buf[:n]), "")))
}

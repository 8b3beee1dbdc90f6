package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// execFailed returns a *RuntimeError when init has ended because the kernel refused to
// execute its command. It has ended as any program that exits with 1 then, and only the
// message of the runtime, which is all that there is in the container's log, tells. Without
// a log, it is doubt in the program that does.
func (e *Executor) execFailed(ctx context.Context, rt *runtime, id string, c Container, doubt error) error {
	if c.LogPath == "" && doubt == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leftoverGrace+conmonGrace)
	defer cancel()
	x, err := e.Wait(ctx, id, c)
	if err != nil || x.Unknown || x.Code != 1 && x.Code != 255 {
		return nil
	}
	if c.LogPath == "" {
		return fmt.Errorf("start container %s: %w", id, doubt)
	}
	if message := refusal(onlyLine(c.LogPath)); message != "" {
		return &RuntimeError{Op: "start", Handler: rt.name, Message: message, ExitCode: int(x.Code)}
	}
	return nil
}

// onlyLine returns what a log in CRI format has as its only line; "" where there are more.
func onlyLine(path string) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	const longest = 16 << 10
	b, err := io.ReadAll(io.LimitReader(f, longest))
	if err != nil || len(b) == longest || bytes.Count(b, []byte("\n")) != 1 {
		return ""
	}
	fields := strings.SplitN(strings.TrimSpace(string(b)), " ", 4) // time, stream, tag, text
	if len(fields) < 4 {
		return ""
	}
	return fields[3]
}

// The messages of crun and runc.
var refused = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile("^(exec container process |exec /?[^ ]*: )")
})

// refusal returns the message of a runtime's init that could not execute its command, out
// of what it wrote.
func refusal(line string) string {
	var l struct{ Level, Msg string }
	if json.Unmarshal([]byte(line), &l) == nil {
		line = l.Msg
	}
	if !refused().MatchString(line) {
		return ""
	}
	return line
}

package rootless

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// UplinkCongestion returns the TCP congestion control of what pods send to an uplink; ""
// leaves theirs.
//
// slirp4netns and pasta end the pods' connections and make others to the outside, which
// have the host's. Between a pod and them nothing is far, and little is lost: what bounds a
// connection is the receiver's window. One that models the path, such as BBR, takes the few
// microseconds of the first answers for its length, allows itself four segments on the
// way, and then waits for each acknowledgement: pasta looks for what the other side has
// acknowledged by a timer of 10 to 50 ms. Those that grow until something is lost fill
// the window.
func UplinkCongestion(uplink string) string {
	if uplink != UplinkSlirp && uplink != UplinkPasta {
		return ""
	}
	return congestionFrom("/proc/sys/net/ipv4")
}

// windowFillers are the algorithms that grow until something is lost, the best first.
var windowFillers = []string{"cubic", "reno"}

// congestionFrom reads the host's default and the algorithms that the kernel has.
func congestionFrom(dir string) string {
	read := func(name string) []string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil
		}
		return strings.Fields(string(text))
	}
	if now := read("tcp_congestion_control"); len(now) == 0 || slices.Contains(windowFillers, now[0]) {
		return ""
	}
	there := read("tcp_available_congestion_control")
	if i := slices.IndexFunc(windowFillers, func(a string) bool { return slices.Contains(there, a) }); i >= 0 {
		return windowFillers[i]
	}
	return ""
}

package rootless

import (
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/keeper"
	"github.com/subpod/subpod/pkg/monitor/wire"
)

// MonitorBinary is the name of the container monitor, which lies beside the server.
const MonitorBinary = "subpod-monitor"

func monitorProgram(c Config) string { return filepath.Join(filepath.Dir(c.Server[0]), MonitorBinary) }

// watcher is the container monitor's part in the node's first process. It is there before
// the node's file system is.
type watcher struct{ keeper atomic.Pointer[keeper.Keeper] }

// start lets clients reach the monitor, which is started for the first of them. Without it
// containers get a conmon each.
func (w *watcher) start(c Config) {
	k, err := keeper.New(keeper.Options{
		Socket:    filepath.Join(nodeDir(c.RunDir), wire.Socket),
		Program:   []string{monitorProgram(c)},
		Env:       append(cleanEnv(os.Environ()), "SUBPOD_MONITOR=1", "SUBPOD_LOG_JSON="+strconv.FormatBool(c.LogJSON)),
		Log:       c.Log,
		Restarted: func() { countRestart(nodeDir(c.RunDir), "monitor") },
	})
	if err != nil {
		c.Log.Warn("the container monitor cannot be used", "error", err)
		return
	}
	w.keeper.Store(k)
	go k.Run()
}

// reaped is called for each process that has ended.
func (w *watcher) reaped(pid int, status unix.WaitStatus) {
	if k := w.keeper.Load(); k != nil {
		k.Reaped(pid, status)
	}
}

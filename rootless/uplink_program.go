package rootless

import (
	"context"
	"log/slog"
	"os/exec"
	"runtime"
	"time"
)

// keepHelper runs an uplink's program and starts it again when it ends. start returns once
// the program serves; when that fails the first time, keepHelper returns the error. stop
// ends the program for good. Restarts are counted in dir, the node's directory.
func keepHelper(log *slog.Logger, dir, program string, start func(context.Context) (*exec.Cmd, error)) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		keepRunning(ctx, log, program, start, ready, func() { countRestart(dir, "uplink") })
	}()
	stop = func() error {
		cancel()
		<-ended
		return nil
	}
	return stop, <-ready
}

func keepRunning(ctx context.Context, log *slog.Logger, program string, start func(context.Context) (*exec.Cmd, error), ready chan<- error, again func()) {
	runtime.LockOSThread() // the program's death signal is tied to this thread
	pause := minPause
	for first := true; ; first = false {
		started := time.Now()
		cmd, err := start(ctx)
		if first {
			ready <- err
			if err != nil {
				return
			}
		} else if err == nil {
			again()
			log.Info("the uplink works again", "program", program, "pid", cmd.Process.Pid)
		}
		if err == nil {
			err = cmd.Wait()
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > steadyAfter {
			pause = minPause
		}
		log.Error("the uplink has ended: pods have no way out", "program", program, "error", err, "restart_in", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

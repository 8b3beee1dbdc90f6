package rootless

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ExitConfig is the exit code (EX_CONFIG of sysexits.h) with which a server
// says that starting it again is of no use: the node ends with the same code.
const ExitConfig = 78

const (
	// stopTimeout is how long the server may take to end after SIGTERM.
	stopTimeout = 20 * time.Second
	// A server that ends by itself is started again after a pause. It doubles
	// from minPause to maxPause while the servers do not get so far as to serve
	// and do not run for steadyAfter either.
	minPause    = 100 * time.Millisecond
	maxPause    = 5 * time.Second
	steadyAfter = 30 * time.Second
	// maxFirstFailures is how often a server may end at once in a node in which
	// none has ever served. What is wrong then is there to stay, and whoever has
	// just typed the command is waiting to hear of it.
	maxFirstFailures = 3
)

// supervisor keeps one server running.
type supervisor struct {
	argv    []string
	log     *slog.Logger
	signals <-chan os.Signal
	pause   time.Duration
	// ready reports whether a server has come to serve in this node since a time.
	ready func(time.Time) bool
	// failures counts the servers that have ended at once before that.
	failures int
}

// verdict is what follows the end of a server.
type verdict int

const (
	restart verdict = iota // it ended by itself
	reload                 // SIGHUP: start the next one now
	finish                 // SIGTERM, SIGINT: end the node
)

// runSupervisorRole supervises the server of the node of this process.
func runSupervisorRole() error {
	c, err := loadConfig(os.Getenv(envState))
	if err != nil {
		return fmt.Errorf("read the node's configuration: %w", err)
	}
	// Parent and child forward every signal they get: none but these may end us.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	signal.Ignore(unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	s := &supervisor{argv: c.Server, log: newLogger(c, "supervisor"), signals: signals, pause: minPause,
		ready: func(since time.Time) bool { return wasReady(c.RunDir, since) }}
	return s.run()
}

func (s *supervisor) run() error {
	for {
		started := time.Now()
		v, err := s.serve()
		if err != nil && exitCode(err) == ExitConfig {
			s.log.Error("the server refuses its configuration")
			return &exitError{"the server", ExitConfig}
		}
		if v == restart {
			steady := time.Since(started) > steadyAfter
			if steady || s.ready(started) {
				s.pause = minPause
			}
			if s.givesUp(steady) {
				s.log.Error("the server cannot start: it has ended at once each time, and said why above",
					"starts", s.failures, "error", err)
				return &exitError{"the server", exitCode(err)}
			}
			s.log.Error("the server has ended; containers keep running", "error", err, "restart_in", s.pause)
			v = s.wait(s.pause)
			s.pause = min(2*s.pause, maxPause)
		}
		switch v {
		case finish:
			return nil
		case reload:
			s.pause, s.failures = minPause, 0
			s.log.Info("starting the server anew", "path", s.argv[0])
		}
	}
}

// givesUp counts the end of a server. A node in which one has served goes on for
// ever: its containers are worth more than a clear message.
func (s *supervisor) givesUp(steady bool) bool {
	if steady || s.ready(time.Time{}) {
		s.failures = 0
		return false
	}
	s.failures++
	return s.failures >= maxFirstFailures
}

// serve runs one server until its end. The verdict is restart unless a signal
// asked for the end.
func (s *supervisor) serve() (verdict, error) {
	// A signal that is already there wins over a start.
	select {
	case sig := <-s.signals:
		if sig != unix.SIGHUP {
			return finish, nil
		}
	default:
	}
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Env = cleanEnv(os.Environ())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// A session of its own: what is sent to the supervisor's process group does not
	// reach conmon, which the server starts; and reapOrphans tells by it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return restart, fmt.Errorf("start the server: %w", err)
	}
	s.log.Debug("server started", "pid", cmd.Process.Pid, "path", cmd.Path)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return restart, explainEnd(err)
	case sig := <-s.signals:
		v := finish
		if sig == unix.SIGHUP {
			v = reload
		}
		return s.stop(cmd, ended, v), nil
	}
}

// stop ends the server in good order, or after stopTimeout by force. A SIGTERM
// that comes while a reload waits turns it into the end.
func (s *supervisor) stop(cmd *exec.Cmd, ended <-chan error, v verdict) verdict {
	_ = cmd.Process.Signal(unix.SIGTERM)
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	for {
		select {
		case <-ended:
			return v
		case sig := <-s.signals:
			if sig != unix.SIGHUP {
				v = finish
			}
		case <-timeout.C:
			s.log.Error("the server does not end after SIGTERM: killing it", "pid", cmd.Process.Pid, "after", stopTimeout)
			_ = cmd.Process.Kill()
		}
	}
}

// wait passes d, or less when a signal comes.
func (s *supervisor) wait(d time.Duration) verdict {
	select {
	case <-time.After(d):
		return restart
	case sig := <-s.signals:
		if sig == unix.SIGHUP {
			return reload
		}
		return finish
	}
}

func explainEnd(err error) error {
	if err == nil {
		return fmt.Errorf("exit status 0 without being asked to end")
	}
	return err
}

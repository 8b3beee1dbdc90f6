package rootless

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ExitConfig is the exit code (EX_CONFIG of sysexits.h) with which a server reports
// that it cannot use its configuration, nor one that has served before. In a node in
// which none has served yet the node ends with the same code, at once.
const ExitConfig = 78

const (
	// serverStopTimeout is how long the server may take to end after SIGTERM.
	serverStopTimeout = 20 * time.Second
	// A server that ends by itself is started again after a pause. It doubles
	// from minPause to maxPause while the servers neither get so far as to serve
	// nor run for steadyAfter.
	minPause    = 100 * time.Millisecond
	maxPause    = 5 * time.Second
	steadyAfter = 30 * time.Second
	// longPause takes the place of maxPause once no server has served for longAfter:
	// this bounds how fast the log grows while nobody looks. SIGHUP ends each pause.
	longPause = time.Minute
	longAfter = 2 * time.Minute
	// maxFirstFailures is how often a server may end at once in a node in which
	// none has ever served. What is wrong then will not change by itself, and whoever
	// has just typed the command waits for the answer.
	maxFirstFailures = 3
)

// supervisor keeps one server running.
//
// Once a server has served in the node, only SIGTERM or SIGINT ends the supervisor
// and with it the node: whatever keeps a server from starting (its configuration, its
// program, the disk, memory) must not cost containers. Servers are then started for
// ever, every second one of those that follow a failure with the configuration that
// served last (envUseSaved).
type supervisor struct {
	argv    []string
	saved   string // file with the configuration that served last; see SavedConfig
	log     *slog.Logger
	signals <-chan os.Signal
	// ready reports whether a server has come to serve in this node since a time.
	ready func(time.Time) bool
	// hasServed is never unset: the file that ready looks at may be removed.
	hasServed bool
	pause     time.Duration
	failures  int       // servers in a row that have ended before they served
	failing   time.Time // when the first of them was started
	held      held      // sockets of the server
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
	s := &supervisor{argv: c.Server, saved: savedConfig(c.RunDir), log: newLogger(c, "supervisor"), signals: signals, pause: minPause,
		ready: func(since time.Time) bool { return wasReady(c.RunDir, since) }}
	s.held.log = s.log
	if f := inheritActivation(); f != nil {
		s.held.put(HeldCRI, f)
	}
	return s.run()
}

func (s *supervisor) run() error {
	stop := func() {}
	for {
		stop()
		started := time.Now()
		v, err := s.serve()
		stop = s.held.answer()
		s.hasServed = s.hasServed || s.ready(time.Time{})
		if v == restart {
			s.count(started)
			if !s.hasServed && exitCode(err) == ExitConfig {
				s.log.Error("the server refuses its configuration, and none has served before: the node ends")
				return &exitError{"the server", ExitConfig}
			}
			if !s.hasServed && s.failures >= maxFirstFailures {
				s.log.Error("the server cannot start: it ended at once each time, its own messages are above",
					"starts", s.failures, "error", err)
				return &exitError{"the server", exitCode(err)}
			}
			s.log.Error("the server has ended; containers keep running", "error", err, "failed_starts", s.failures, "restart_in", s.pause)
			v = s.wait(s.pause)
			countRestart(filepath.Dir(s.saved), "server")
			s.lengthen()
		}
		switch v {
		case finish:
			return nil
		case reload:
			s.pause, s.failures = minPause, 0
			s.log.Info("starting a new server", "path", s.argv[0])
		}
	}
}

// count takes the end of a server into account that was started at a time.
func (s *supervisor) count(started time.Time) {
	steady := time.Since(started) > steadyAfter
	s.hasServed = s.hasServed || steady
	if steady || s.ready(started) {
		s.pause, s.failures = minPause, 0
		return
	}
	if s.failures++; s.failures == 1 {
		s.failing = started
	}
}

// lengthen sets the next pause.
func (s *supervisor) lengthen() {
	longest := maxPause
	if s.failures > 0 && time.Since(s.failing) > longAfter {
		longest = longPause
	}
	s.pause = min(2*s.pause, longest)
}

// environ is the server's environment. A failure may be due to the configuration on
// disk or to the one that served last, or to neither: they take turns.
func (s *supervisor) environ() []string {
	use := ""
	if s.hasServed && s.failures%2 == 1 {
		use = "1"
	}
	return append(cleanEnv(os.Environ()), envSaved+"="+s.saved, envUseSaved+"="+use)
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
	s.held.log = s.log
	files, names, started := s.held.inherit()
	cmd.ExtraFiles, cmd.Env = files, append(s.environ(), names, envAnswers+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// A session of its own: what is sent to the supervisor's process group does not
	// reach conmon, which the server starts; and reapOrphans recognizes it by that.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err := cmd.Start()
	started()
	if err != nil {
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

// stop sends SIGTERM to the server, after serverStopTimeout SIGKILL, and waits for its
// end. A SIGTERM that comes while a reload waits turns it into the end of the node.
func (s *supervisor) stop(cmd *exec.Cmd, ended <-chan error, v verdict) verdict {
	_ = cmd.Process.Signal(unix.SIGTERM)
	timeout := time.NewTimer(serverStopTimeout)
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
			s.log.Error("the server does not end after SIGTERM: killing it", "pid", cmd.Process.Pid, "after", serverStopTimeout)
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

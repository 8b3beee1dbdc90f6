package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// Pods changes pods: pod.Restarter, which documents the methods.
type Pods interface {
	Supervise(podID string, change func(state.Pod) (workload.Status, bool)) (state.Pod, error)
	Rebuild(ctx context.Context, podID string, wanted func(state.Pod) bool) error
	CreateContainer(ctx context.Context, podID string, cfg *runtimeapi.ContainerConfig) (string, error)
	StartAgain(ctx context.Context, id string, cfg *runtimeapi.ContainerConfig, fresh bool, wanted func(state.Pod) bool) error
	End(ctx context.Context, id string, grace time.Duration) error
	Finish(ctx context.Context, podID string) error
	MarkStopped(ctx context.Context, id string) error
	Hold(podID string) (release func())
}

// Records are the stored records: *state.Store.
type Records interface {
	Pod(id string) (state.Pod, error)
	FindContainer(ref string) (state.Container, error)
	Pods() []state.Pod
	ContainersOf(podID string) []state.Container
}

// Sessions reaches into pods: *pod.Sessions.
type Sessions interface {
	Probe(ctx context.Context, id string, cmd []string, timeout time.Duration) (oci.ExecResult, error)
	Dial(ctx context.Context, podID, host string, port int32) (net.Conn, error)
}

// Options are what a Supervisor depends on. All are needed.
type Options struct {
	// NodeID is the identity of the node, as in the records.
	NodeID   string
	Pods     Pods
	Records  Records
	Sessions Sessions
	// Volumes returns the directory of a pod's memory volumes.
	Volumes func(podID string) string
	// Health asks grpc.health.v1 for a service on a connection; nil is serving.
	Health func(ctx context.Context, conn net.Conn, service string) error
	Log    *slog.Logger
}

// Supervisor looks after all pods that have a specification. Its methods may be called
// concurrently.
type Supervisor struct {
	Options
	now func() time.Time

	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu    sync.Mutex
	on    bool             // Start was called and Close was not
	units map[string]*unit // by pod ID
	// starts counts the direct starts of each pod that are under way, begun those of all
	// pods: what a container has ended with meanwhile is of the run before.
	starts map[string]int
	begun  int
}

// New returns a Supervisor that does nothing before Start.
func New(o Options) *Supervisor {
	ctx, cancel := context.WithCancel(context.Background())
	return &Supervisor{Options: o, now: time.Now, ctx: ctx, cancel: cancel, units: map[string]*unit{}, starts: map[string]int{}}
}

// Start begins with all pods, once they are recovered.
func (s *Supervisor) Start() {
	s.mu.Lock()
	s.on = true
	s.mu.Unlock()
	for _, p := range s.Records.Pods() {
		if p.Workload == nil {
			continue
		}
		s.Kick(p.ID)
		if p.Supervised() && p.Supervision.Restarting {
			s.group.Go(func() { s.restartOn(p) })
		}
	}
}

// Close ends the supervision. What runs goes on, and the next server continues.
func (s *Supervisor) Close() {
	s.mu.Lock()
	s.on = false
	s.mu.Unlock()
	s.cancel()
	s.group.Wait()
}

// Kick makes the supervisor look at a pod: something about it has changed. It does not
// block; a pod without a specification is ignored.
func (s *Supervisor) Kick(podID string) {
	p, err := s.Records.Pod(podID)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.units[podID]
	if u == nil {
		if err != nil || p.Workload == nil || !s.on {
			return
		}
		u = newUnit(s, p)
		s.units[podID] = u
	}
	u.kicked = true
	if u.runs || !s.on {
		select {
		case u.kick <- struct{}{}:
		default:
		}
		return
	}
	u.runs = true
	s.group.Go(func() { u.run(s.ctx) })
}

// anew lets a pod's unit forget what has failed: its user starts the pod.
func (s *Supervisor) anew(podID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.units[podID]; u != nil {
		u.anew = true
	}
}

// startingDirectly notes that a pod is started directly, until ended is called.
func startingDirectly(s *Supervisor, podID string) (ended func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starts[podID]++
	s.begun++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.starts[podID]--; s.starts[podID] == 0 {
			delete(s.starts, podID)
		}
	}
}

// directStarts returns how many direct starts of pods there were so far, and how many of
// this one are under way.
func (u *unit) directStarts() (begun, underWay int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.begun, u.starts[u.id]
}

// rest reports whether the unit's goroutine may end: nobody has kicked it meanwhile. gone
// is that the pod is.
func (s *Supervisor) rest(u *unit, gone bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if gone {
		delete(s.units, u.id)
	} else if u.kicked {
		u.kicked = false
		return false
	}
	u.runs = false
	return true
}

// unit looks after one pod.
type unit struct {
	*Supervisor
	id, name string
	kick     chan struct{}
	kicked   bool // guarded by Supervisor.mu, as runs and anew
	runs     bool
	anew     bool // what has failed is tried at once

	watches map[string]*watch // by container; of the goroutine alone
	retry   map[string]retry  // by container, "" for the sandbox

	feed  feed
	exits map[string]time.Time // the exits that were reported last, by container
	began bool                 // those of before are noted
	wasUp bool                 // and that it is up is reported
	final bool                 // how it has ended is reported
}

type retry struct {
	at    time.Time
	err   error
	tries uint32
}

func newUnit(s *Supervisor, p state.Pod) *unit {
	return &unit{
		Supervisor: s, id: p.ID, name: p.Config.V.GetMetadata().GetName(), kick: make(chan struct{}, 1),
		watches: map[string]*watch{}, retry: map[string]retry{}, exits: map[string]time.Time{}, feed: feed{changed: make(chan struct{})},
	}
}

// run takes one step after the other until nothing is left to do.
func (u *unit) run(ctx context.Context) {
	defer u.endWatches(nil)
	for ctx.Err() == nil {
		begun := u.listen()
		p, err := u.Records.Pod(u.id)
		if err != nil {
			u.feed.add(Event{Final: true, Stopped: true, Text: u.name + ": removed"})
			u.rest(u, true)
			return
		}
		containers := u.Records.ContainersOf(u.id)
		seen := u.look(p, containers)
		u.endWatches(&seen)
		u.reportExits(p, seen)
		d := decide(p.Workload, p.Supervision, seen, u.now())
		if d.action == finish {
			if now, starts := u.directStarts(); starts > 0 {
				u.sleep(ctx, time.Time{}) // until the start kicks it
				continue
			} else if now != begun {
				continue // what was looked at may be of before the start, or of after it
			}
		}
		if d.action == end || d.action == wait && !p.Supervised() {
			u.report(p)
			if u.rest(u, false) {
				return
			}
			continue
		}
		if d.action == wait {
			u.watch(ctx, p, containers)
			u.reportUp(p, seen)
			u.sleep(ctx, d.at)
			continue
		}
		u.act(ctx, p, containers, seen, d)
	}
}

// listen takes what has been said to the unit: what is looked at from here on has it. It
// returns how many direct starts there were so far.
func (u *unit) listen() (begun int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.kicked = false; u.anew {
		u.anew = false
		clear(u.retry)
	}
	return u.begun
}

// sleep waits for a kick, or a time.
func (u *unit) sleep(ctx context.Context, at time.Time) {
	var timer <-chan time.Time
	if !at.IsZero() {
		t := time.NewTimer(at.Sub(u.now()))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-u.kick:
	case <-timer:
	case <-ctx.Done():
	}
}

// look gathers what a decision depends on.
func (u *unit) look(p state.Pod, containers []state.Container) seen {
	s := seen{
		ready: p.Status.Phase == state.PodReady, rebooted: p.Supervision.StoppedIn != "" && p.Supervision.StoppedIn != u.NodeID,
		retry: u.retry[""].at, containers: map[string]container{},
	}
	for _, c := range p.Workload.Containers {
		x := container{retry: u.retry[c.Name].at, failed: u.retry[c.Name].err}
		if rec := recordOf(p, containers, c.Name); rec != nil {
			x.code, x.started, x.finished = rec.Status.ExitCode, rec.Status.StartedAt, rec.Status.FinishedAt
			switch rec.State() {
			case runtimeapi.ContainerState_CONTAINER_CREATED:
				x.state = created
			case runtimeapi.ContainerState_CONTAINER_RUNNING:
				x.state = running
			case runtimeapi.ContainerState_CONTAINER_EXITED:
				x.state = exited
			}
			w := u.watches[c.Name]
			x.up = c.PostStart == nil && c.Startup == nil || w != nil && w.startedAt.Equal(x.started) && w.up.Load()
		}
		s.containers[c.Name] = x
	}
	return s
}

// recordOf returns the record of a container by its name in the specification, nil for
// none.
func recordOf(p state.Pod, containers []state.Container, name string) *state.Container {
	for i := range containers {
		if containers[i].Status.Created && (p.Workload.Made() || containers[i].Config.V.GetMetadata().GetName() == name) {
			return &containers[i]
		}
	}
	return nil
}

// wanted reports whether a container is still to be started.
func wanted(name string) func(state.Pod) bool {
	return func(p state.Pod) bool {
		return p.Supervised() && !p.Supervision.Restarting && !p.Supervision.Containers[name].Stopped
	}
}

// minRetry is the least pause before a step that has failed is tried again.
const minRetry = time.Second

// failedStep notes that a step has failed, and when it may be tried again. One that
// another request has interrupted, as a removal does, says nothing about the next try.
func (u *unit) failedStep(spec *workload.Spec, key string, err error) {
	if errors.Is(err, errdefs.ErrAborted) {
		u.retry[key] = retry{at: u.now().Add(minRetry)}
		return
	}
	r := u.retry[key]
	r.tries++
	r.err, r.at = err, u.now().Add(max(spec.Backoff.Delay(r.tries), minRetry))
	u.retry[key] = r
}

func (u *unit) act(ctx context.Context, p state.Pod, containers []state.Container, s seen, d decision) {
	var err error
	key := ""
	switch d.action {
	case rebuild:
		if err = u.Pods.Rebuild(ctx, u.id, state.Pod.Supervised); err == nil {
			u.say("%s: its sandbox was built again", u.name)
		}
	case start:
		key = d.container.Name
		err = u.start(ctx, p, containers, s, d.container)
	case resume:
		next := p.Supervision.Resumed()
		next.StartedAt = u.now()
		_, err = u.change(p, next)
	case stopped:
		next := p.Supervision
		next.Stopped, next.StoppedIn = true, u.NodeID
		err = u.finish(ctx, p, next)
	case finish:
		next := p.Supervision
		next.Done, next.Failed, next.Reason = true, d.failed, d.reason
		err = u.finish(ctx, p, next)
	case tidy:
		err = u.Pods.Finish(ctx, u.id)
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		delete(u.retry, key)
		return
	}
	if now, gone := u.Records.Pod(u.id); gone != nil || !now.Supervised() && (d.action == rebuild || d.action == start) {
		return // by its user: the next look says so
	} else if key != "" && now.Supervision.Containers[key].Stopped {
		return
	}
	u.failedStep(p.Workload, key, err)
	if d.action != rebuild && d.action != start { // decide knows no time for these
		defer func() { u.sleep(ctx, u.retry[key].at) }()
	}
	if errors.Is(err, errdefs.ErrAborted) {
		return
	}
	u.Log.Warn("a step of a supervised pod has failed; it is tried again", "pod", u.id, "container", key, "error", err)
	if key != "" {
		u.say("%s/%s: %v", u.name, key, err)
	} else {
		u.say("%s: %v", u.name, err)
	}
}

// change records how far the pod is, unless its user has said something since p was
// looked at: then the next look decides.
func (u *unit) change(p state.Pod, next workload.Status) (done bool, err error) {
	_, err = u.Pods.Supervise(u.id, func(now state.Pod) (workload.Status, bool) {
		done = reflect.DeepEqual(now.Supervision, p.Supervision)
		return next, done
	})
	return done && err == nil, err
}

// finish records how the pod has ended, then stops it.
func (u *unit) finish(ctx context.Context, p state.Pod, next workload.Status) error {
	if done, err := u.change(p, next); !done {
		return err
	}
	u.endWatches(nil)
	return u.Pods.Finish(ctx, u.id)
}

// start makes a container where there is none, and starts it. That it is restarted is
// recorded first: a crash in the middle counts.
func (u *unit) start(ctx context.Context, p state.Pod, containers []state.Container, s seen, c *workload.Container) error {
	x := s.containers[c.Name]
	before := p.Supervision.Containers[c.Name]
	p, err := u.Pods.Supervise(u.id, func(p state.Pod) (workload.Status, bool) {
		progress := restarted(p.Workload, p.Supervision.Containers[c.Name], x, p.Supervision.Generation)
		return p.Supervision.With(c.Name, progress), p.Supervised()
	})
	if err != nil {
		return err
	}
	cfg, err := resolve(c, p, u.Volumes(u.id))
	if err != nil {
		return err
	}
	id := ""
	if rec := recordOf(p, containers, c.Name); rec != nil {
		id = rec.ID
	} else if cfg == nil {
		return fmt.Errorf("%w: the container has been removed", errdefs.ErrFailedPrecondition)
	} else if id, err = u.Pods.CreateContainer(ctx, u.id, cfg); err != nil {
		return err
	}
	err = u.Pods.StartAgain(ctx, id, cfg, c.Fresh && x.state == exited, wanted(c.Name))
	if err == nil {
		u.say("%s/%s: started", u.name, c.Name)
		return u.noteRun(c.Name)
	}
	if now, found := u.Records.FindContainer(id); found == nil && now.State() == runtimeapi.ContainerState_CONTAINER_EXITED && now.Status.FinishedAt.After(x.finished) {
		u.say("%s/%s: %v", u.name, c.Name, err)
		return nil // it has failed to start, which is an exit as any other
	}
	// It was not restarted.
	_, undo := u.Pods.Supervise(u.id, func(p state.Pod) (workload.Status, bool) {
		progress := p.Supervision.Containers[c.Name]
		progress.Restarts, progress.Failures, progress.Ran, progress.Generation = before.Restarts, before.Failures, before.Ran, before.Generation
		return p.Supervision.With(c.Name, progress), true
	})
	return errors.Join(err, undo)
}

// noteRun records that a container was run, where a request to start it has come just
// before it was, and has reset that.
func (u *unit) noteRun(name string) error {
	_, err := u.Pods.Supervise(u.id, func(p state.Pod) (workload.Status, bool) {
		progress := p.Supervision.Containers[name]
		ran := progress.Ran
		progress.Ran, progress.Generation = true, p.Supervision.Generation
		return p.Supervision.With(name, progress), !ran
	})
	return err
}

// exitText says what has become of a container that has exited.
func (u *unit) exitText(spec *workload.Spec, c *workload.Container, st workload.Status, s seen) string {
	v, at := judge(spec, c, st, s, u.now())
	title := u.name + "/" + c.Name
	code := s.containers[c.Name].code
	switch v {
	case completed:
		return title + ": completed"
	case later:
		return fmt.Sprintf("%s: exited with code %d; restarting in %v", title, code, max(at.Sub(u.now()), 0).Round(100*time.Millisecond))
	case due:
		return fmt.Sprintf("%s: exited with code %d; restarting in 0s", title, code)
	}
	return fmt.Sprintf("%s: exited with code %d", title, code)
}

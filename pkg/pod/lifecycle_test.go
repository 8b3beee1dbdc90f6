package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/state"
)

// The lifecycle tests run two clients against one Manager over a fake world, in which
// every write of a record and every effect is a step. A scheduler lets one step go on
// at a time, and runs all orders in which the steps of both clients can follow each
// other: a depth-first search over the choices that there are, in which a state that was
// met before (the world, the steps that wait,
// and the last one that each client has done) is not searched again. At each step
// it also runs what follows when that step fails, and when the server is killed there
// and another one recovers. Nothing here waits for real time.

// A run is one order of steps.
type run struct {
	choices []int // which of the waiting steps goes on, at each decision
	// inject is what happens at the last of choices.
	inject injection
}

type injection int

const (
	nothing injection = iota
	// failure: the step has no effect.
	failure
	// late: the step fails after it has had its effect.
	late
	// full: no record can be written any more until both clients have their answers.
	full
	// broken: this operation fails whoever tries it, until both have their answers.
	broken
	// kill: the server is killed before the step, and another one recovers.
	kill
)

// injections says what can happen at a step: records are written or not, and effects
// can fail late, and again and again.
func injections(step string) []injection {
	_, operation, _ := strings.Cut(step, ": ")
	if operation == "" {
		operation = step
	}
	switch {
	case strings.HasPrefix(operation, "begin"), strings.HasPrefix(operation, "exit"), strings.HasPrefix(operation, "after"):
		return []injection{kill}
	case isWrite(operation):
		return []injection{failure, full, kill}
	}
	return []injection{failure, late, broken, kill}
}

// isWrite reports whether a step writes a record.
func isWrite(operation string) bool {
	for _, kind := range []string{"put ", "update ", "delete pod ", "delete container "} {
		if strings.HasPrefix(operation, kind) {
			return true
		}
	}
	return false
}

// kind returns the operation of a step, without the client and the object.
func kind(step string) string {
	if _, rest, found := strings.Cut(step, ": "); found {
		step = rest
	}
	if i := strings.LastIndex(step, " #"); i > 0 {
		step = step[:i]
	}
	return step
}

// scheduler lets the steps of a run go on one by one.
type scheduler struct {
	mu      sync.Mutex
	waiting []*waiter
	done    map[string]string // the last step of each client, of watchers ("")
	dead    bool              // the server was killed
	open    bool              // steps no longer stop
	full    bool              // writes fail
	broken  string            // the kind of step that fails
}

type waiter struct {
	name string
	goOn chan error
}

// step is called by the world's operations.
func (s *scheduler) step(name string) error {
	s.mu.Lock()
	if s.dead {
		s.mu.Unlock()
		return errKilled
	}
	if s.open {
		s.mu.Unlock()
		return nil
	}
	if err := s.troubleLocked(name); err != nil {
		s.mu.Unlock()
		return err
	}
	w := &waiter{name: name, goOn: make(chan error)}
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()
	return <-w.goOn
}

// next returns the steps that wait, in an order that is the same in every run.
func (s *scheduler) next() []*waiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortStableFunc(s.waiting, func(a, b *waiter) int { return strings.Compare(a.name, b.name) })
	return slices.Clone(s.waiting)
}

func (s *scheduler) release(w *waiter, err error) {
	s.mu.Lock()
	s.waiting = slices.DeleteFunc(s.waiting, func(x *waiter) bool { return x == w })
	client, step, found := strings.Cut(w.name, ": ")
	if !found {
		client, step = "", client
	}
	s.done[client] = step
	s.mu.Unlock()
	w.goOn <- err
}

// die fails every step from now on: a killed server has no effect any more.
func (s *scheduler) die() {
	s.mu.Lock()
	s.dead = true
	waiting := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for _, w := range waiting {
		w.goOn <- errKilled
	}
}

// trouble lets the operations fail that the injection means, from now on.
func (s *scheduler) trouble(what injection, step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if what == full {
		s.full = true
	} else {
		s.broken = kind(step)
	}
}

// troubleOf returns the error of a step that the trouble meets.
func (s *scheduler) troubleOf(step string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.troubleLocked(step)
}

func (s *scheduler) troubleLocked(step string) error {
	if k := kind(step); s.broken != "" && s.broken == k || s.full && isWrite(k+" ") {
		return errInjected
	}
	return nil
}

// letGo lets all steps go on from now on.
func (s *scheduler) letGo() {
	s.mu.Lock()
	s.open, s.full, s.broken = true, false, ""
	waiting := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for _, w := range waiting {
		w.goOn <- nil
	}
}

// client is one of the two: a request, and what it must not be answered.
type client struct {
	name  string
	needs start // what must be there
	until start // more than this makes no difference to it
	call  func(*rig) error
	// allowed are the errors that the request may be answered with, besides those of
	// an injected failure.
	allowed []error
}

// rig is one server, its world and the state that the clients share.
type rig struct {
	t       *testing.T
	ctx     context.Context
	w       *world
	s       *server
	m       *Manager
	bus     *events.Bus
	pod     string // made before the clients begin; "" for none
	ctr     string
	acked   *sync.Map    // pod IDs that a client has got
	removed *atomic.Bool // a removal was asked for
}

func podConfig(name, note string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "u"},
		Annotations: map[string]string{"note": note},
	}
}

func containerConfig(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: "busybox"}}
}

func newServer(w *world, s *scheduler, bus *events.Bus) (*server, *Manager) {
	srv := &server{world: w, step: s.step}
	return srv, New(Options{
		NodeID:   "node",
		Handlers: Handlers{Default: "crun", Known: map[string]oci.Features{"crun": {}}},
		Host:     sandbox.Host{},
		State:    srv, Sandboxes: srv, Containers: srv, Processes: srv, Orphans: srv,
		Events: bus, Log: slog.New(slog.DiscardHandler),
	})
}

// The requests that clients make.
var (
	runSame = client{"run", empty, withPod, func(r *rig) error {
		id, err := r.m.RunPod(r.ctx, podConfig("web", ""), "")
		if err == nil {
			r.acked.Store(id, true)
		}
		return err
	}, []error{errdefs.ErrAlreadyExists, errdefs.ErrAborted}}
	runOther = client{"run another", empty, withPod, func(r *rig) error {
		id, err := r.m.RunPod(r.ctx, podConfig("web", "another"), "")
		if err == nil {
			r.acked.Store(id, true)
		}
		return err
	}, []error{errdefs.ErrAlreadyExists, errdefs.ErrAborted}}
	runWith = client{"run with a container", empty, withPod, func(r *rig) error {
		id, _, err := r.m.RunPodWith(r.ctx, podConfig("web", "with"), "", containerConfig("a"))
		if err == nil {
			r.acked.Store(id, true)
		}
		return err
	}, []error{errdefs.ErrAlreadyExists, errdefs.ErrAborted}}
	create = client{"create", withPod, withPod, func(r *rig) error {
		_, err := r.m.CreateContainer(r.ctx, r.pod, containerConfig("a"))
		return err
	}, []error{errdefs.ErrFailedPrecondition, errdefs.ErrAborted, errGone}}
	createSame = client{"create the same", withPod, withContainer, func(r *rig) error {
		_, err := r.m.CreateContainer(r.ctx, r.pod, containerConfig("c"))
		return err
	}, []error{errdefs.ErrFailedPrecondition, errdefs.ErrAborted, errGone}}
	startContainer = client{"start", withContainer, withProcess, func(r *rig) error { return r.m.StartContainer(r.ctx, r.ctr) },
		[]error{errdefs.ErrFailedPrecondition, errdefs.ErrAborted, ErrStart, errGone}}
	stopContainer   = client{"stop the container", withContainer, withExited, func(r *rig) error { return r.m.StopContainer(r.ctx, r.ctr, time.Second) }, nil}
	removeContainer = client{"remove the container", withContainer, withExited, func(r *rig) error {
		err := r.m.RemoveContainer(r.ctx, r.ctr)
		if err == nil {
			if _, found := r.m.State.Container(r.ctr); found == nil {
				return errors.New("the container is there after it has been removed")
			}
		}
		return err
	}, nil}
	stop   = client{"stop", withPod, withExited, func(r *rig) error { return r.m.StopPod(r.ctx, r.pod) }, nil}
	remove = client{"remove", withPod, withExited, func(r *rig) error {
		r.removed.Store(true)
		return r.m.RemovePod(r.ctx, r.pod)
	}, nil}
	// stopAll stops containers that it has found in a list, also one that is being made.
	stopAll = client{"stop what is listed", withPod, withProcess, func(r *rig) (err error) {
		for _, c := range r.m.State.Containers() {
			err = errors.Join(err, r.m.StopContainer(r.ctx, c.ID, 0))
			if now, found := r.m.State.Container(c.ID); err == nil && found == nil && now.State() != runtimeapi.ContainerState_CONTAINER_EXITED {
				return errors.New("a container is not stopped after it has been stopped")
			}
		}
		return err
	}, nil}
	// removeAll removes pod sandboxes that it has found in a list, also one that is being
	// made.
	removeAll = client{"remove what is listed", empty, withContainer, func(r *rig) (err error) {
		for _, p := range r.m.State.Pods() {
			r.removed.Store(true)
			err = errors.Join(err, r.m.RemovePod(r.ctx, p.ID))
			if _, found := r.m.State.Pod(p.ID); err == nil && found == nil {
				return errors.New("a pod sandbox is there after it has been removed")
			}
		}
		return err
	}, nil}
	// startAgain is what the supervisor does to a container, rebuild to a pod sandbox.
	startAgain = client{"start again", withContainer, withExited, func(r *rig) error {
		return Restarter{r.m}.StartAgain(r.ctx, r.ctr, nil, false, func(state.Pod) bool { return true })
	}, []error{errdefs.ErrFailedPrecondition, errdefs.ErrAborted, ErrStart, errGone}}
	rebuild = client{"build again", withPod, withExited, func(r *rig) error {
		return Restarter{r.m}.Rebuild(r.ctx, r.pod, func(state.Pod) bool { return true })
	}, []error{errdefs.ErrFailedPrecondition, errdefs.ErrAborted, errGone}}
	exit = client{"exit", withContainer, withProcess, func(r *rig) error { return ignoreKilled(r.s.exit(r.ctr)) }, nil}
)

func ignoreKilled(err error) error {
	if errors.Is(err, errKilled) || errors.Is(err, errInjected) {
		return nil
	}
	return err
}

var clients = []client{runSame, runOther, runWith, create, createSame, startContainer, stopContainer, removeContainer, stop, remove, removeAll, stopAll, exit, startAgain, rebuild}

// errGone allows NotFound: the object that the request names may have been removed.
var errGone = state.ErrNotFound

// scenario is what is there before, and two clients.
type scenario struct {
	before start
	a, b   client
}

// start is what is there before the clients begin.
type start int

const (
	empty start = iota
	withPod
	withContainer
	withProcess
	withExited
)

func (s scenario) String() string {
	before := []string{"nothing", "a pod", "a container", "a process", "an exited container"}[s.before]
	return strings.ReplaceAll(fmt.Sprintf("%s: %s while %s", before, s.a.name, s.b.name), " ", "-")
}

// scenarios are all pairs of requests, on everything that can be there before and makes
// a difference to both.
func scenarios() (all []scenario) {
	for i, a := range clients {
		for _, b := range clients[i:] {
			least := max(a.needs, b.needs)
			for before := least; before <= max(least, min(a.until, b.until)); before++ {
				all = append(all, scenario{before, a, b})
			}
		}
	}
	return all
}

// outcome is what a run showed.
type outcome struct {
	widths []int    // how many choices there were at each decision
	states []string // all that there was at each decision
	names  []string
	faults []string
}

// TestLifecycle runs all orders of the steps of two clients, with a failure or a kill
// at each step.
func TestLifecycle(t *testing.T) {
	var orders, failures, kills atomic.Int64
	begin := time.Now()
	t.Run("all", func(t *testing.T) {
		for _, s := range scenarios() {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				explore(t, s, &orders, &failures, &kills)
			})
		}
	})
	t.Logf("%d scenarios, %d orders of steps, %d failures, %d kills, %v", len(scenarios()), orders.Load(), failures.Load(), kills.Load(), time.Since(begin).Round(time.Millisecond))
}

// explore searches the tree of choices depth first. A node is visited once: there, the
// step's failure and the server's kill are tried, too.
func explore(t *testing.T, s scenario, orders, failures, kills *atomic.Int64) {
	path := []int{}
	seen := 0 // the first decision that is new in this run
	visited := map[string]bool{}
	mine, killed, steps := int64(0), int64(0), 0
	defer func() { t.Logf("%s: %d orders, %d kills", s, mine, killed) }()
	for {
		r := run{choices: path}
		o := execute(t, s, r)
		orders.Add(1)
		mine++
		report(t, s, r, o)
		for depth := seen; depth < len(o.widths); depth++ {
			// What follows from the same state has been looked at; the choice that is new
			// in this run has not.
			if depth >= len(path) && visited[o.states[depth]] {
				o.widths = o.widths[:depth]
				break
			}
			visited[o.states[depth]] = true
			if steps++; steps%injectEvery != 1%injectEvery {
				continue
			}
			choices := make([]int, depth+1)
			copy(choices, path)
			for _, inject := range injections(o.names[depth]) {
				r := run{choices: choices, inject: inject}
				report(t, s, r, execute(t, s, r))
				if inject == kill {
					kills.Add(1)
					killed++
				} else {
					failures.Add(1)
				}
			}
		}
		if t.Failed() && !*all {
			return
		}
		full := make([]int, len(o.widths))
		copy(full, path)
		last := len(full) - 1
		for last >= 0 && full[last]+1 >= o.widths[last] {
			last--
		}
		if last < 0 {
			return
		}
		path = append(full[:last:last], full[last]+1)
		seen = last
	}
}

func report(t *testing.T, s scenario, r run, o outcome) {
	if len(o.faults) == 0 {
		return
	}
	what := map[injection]string{
		nothing: "", failure: ", the last of which fails", late: ", the last of which fails late",
		full: ", from the last of which on the disk is full", broken: ", from the last of which on the same fails",
		kill: ", the last of which is the server's end",
	}[r.inject]
	t.Errorf("%s: %s\nafter the choices %v%s:\n  %s", s, strings.Join(o.faults, "\n  "), r.choices, what, strings.Join(o.names, "\n  "))
}

// execute runs one order. Every fault that it sees is in the outcome.
func execute(t *testing.T, s scenario, r run) (o outcome) {
	synctest.Test(t, func(t *testing.T) {
		bus := events.New(0)
		sub := bus.Subscribe()
		sched := &scheduler{open: true, done: map[string]string{}}
		rg := &rig{t: t, ctx: t.Context(), w: newWorld(), bus: bus, acked: &sync.Map{}, removed: &atomic.Bool{}}
		rg.s, rg.m = newServer(rg.w, sched, bus)
		rg.m.Recover(rg.ctx)
		rg.prepare(s)
		synctest.Wait()
		sched.open = false

		answers := make(chan answer, 2)
		for i, c := range []client{s.a, s.b} {
			mine := rg.as(string('A'+rune(i)), sched)
			go func() {
				err := mine.s.step("begin: " + c.name)
				if err == nil {
					err = c.call(mine)
				}
				answers <- answer{c, err}
			}()
		}
		got := rg.drive(sched, r, &o, answers)
		for _, a := range got {
			o.faults = append(o.faults, a.faults(r)...)
		}
		sched.letGo()
		if r.inject == kill {
			rg.restart(sched, &o)
		}
		rg.check(r, &o, got, sub)
		rg.m.Close()
		bus.Close()
	})
	return o
}

// prepare makes what is there before the clients begin.
func (r *rig) prepare(s scenario) {
	must := func(err error) {
		if err != nil {
			r.t.Fatal(err)
		}
	}
	var err error
	if s.before >= withPod {
		r.pod, err = r.m.RunPod(r.ctx, podConfig("web", ""), "")
		must(err)
	}
	if s.before >= withContainer {
		r.ctr, err = r.m.CreateContainer(r.ctx, r.pod, containerConfig("c"))
		must(err)
	}
	if s.before >= withProcess {
		must(r.m.StartContainer(r.ctx, r.ctr))
	}
	if s.before >= withExited {
		must(r.s.exit(r.ctr))
		synctest.Wait()
	}
}

type answer struct {
	client
	err error
}

// faults says what is wrong with an answer.
func (a answer) faults(r run) []string {
	err := a.err
	if err == nil || r.inject != nothing && (errors.Is(err, errKilled) || errors.Is(err, errInjected) || errors.Is(err, context.Canceled)) {
		return nil
	}
	for _, allowed := range a.allowed {
		if errors.Is(err, allowed) {
			return nil
		}
	}
	// What an injected failure has left is no fault of the other client.
	if r.inject != nothing && !errors.Is(err, state.ErrNotFound) {
		return nil
	}
	return []string{fmt.Sprintf("%s was answered with: %v", a.name, err)}
}

// maxIdle is how often nothing may move for a second of the bubble's time before the
// run counts as hung: no timeout of the package is as long.
const maxIdle = 600

// drive lets one step after the other go on until both clients have their answers and
// nothing more happens.
func (r *rig) drive(sched *scheduler, order run, o *outcome, answers chan answer) (got []answer) {
	for idle := 0; ; {
		synctest.Wait()
		for len(answers) > 0 {
			got = append(got, <-answers)
		}
		waiting := sched.next()
		if len(waiting) == 0 {
			if len(got) == 2 {
				return got
			}
			if idle++; idle > maxIdle {
				o.faults = append(o.faults, "a request hangs")
				return got
			}
			time.Sleep(time.Second)
			continue
		}
		idle = 0
		depth := len(o.widths)
		choice := 0
		if depth < len(order.choices) {
			choice = min(order.choices[depth], len(waiting)-1)
		}
		o.widths = append(o.widths, len(waiting))
		o.states = append(o.states, r.state(sched, waiting, got))
		o.names = append(o.names, r.w.aliases(waiting[choice].name))
		inject := nothing
		if depth == len(order.choices)-1 {
			inject = order.inject
		}
		switch inject {
		case failure:
			sched.release(waiting[choice], errInjected)
		case late:
			sched.release(waiting[choice], errLate)
		case full, broken:
			sched.trouble(inject, waiting[choice].name)
			sched.release(waiting[choice], errInjected)
		case kill:
			sched.die()
			r.m.cancel()
		default:
			sched.release(waiting[choice], sched.troubleOf(waiting[choice].name))
		}
	}
}

// as returns the rig of one client: its Manager is the same, but its steps carry the
// client's name.
func (r *rig) as(name string, sched *scheduler) *rig {
	mine, manager, base := *r, *r.m, *r.m.base
	mine.s = &server{world: r.w, step: func(step string) error { return sched.step(name + ": " + step) }}
	base.State, base.Sandboxes, base.Containers, base.Processes = mine.s, mine.s, mine.s, mine.s
	manager.base = &base
	mine.m = &manager
	return &mine
}

// state describes everything that what follows depends on.
func (r *rig) state(sched *scheduler, waiting []*waiter, got []answer) string {
	var b strings.Builder
	fmt.Fprintln(&b, sched.done)
	for _, w := range waiting {
		fmt.Fprintln(&b, w.name)
	}
	for _, a := range got {
		fmt.Fprintln(&b, a.name, a.err)
	}
	for _, p := range r.s.Pods() {
		fmt.Fprintln(&b, p.ID, p.Status, r.w.sandboxes[p.ID])
	}
	for _, c := range r.s.Containers() {
		p := r.w.processes[c.ID]
		fmt.Fprintln(&b, c.ID, c.Status.Created, c.Status.Removing, c.State(), c.Status.Reason, c.Allocated.Cleaned, c.Allocated.Remaking, r.w.rootfs[c.ID], p != nil, p != nil && p.running())
	}
	return r.w.aliases(b.String())
}

// restart starts another server in the world that a killed one has left.
func (r *rig) restart(sched *scheduler, o *outcome) {
	r.m.Close()
	running := map[string]*process{}
	for id, p := range r.w.processes {
		if c, ok := r.w.containers[id]; ok && c.Status.Created && !c.Status.Removing && r.w.pods[c.PodID].Status.Phase == state.PodReady && p.running() {
			running[id] = p
		}
	}
	ready := map[string]bool{}
	for id, p := range r.w.pods {
		ready[id] = p.Status.Phase == state.PodReady
	}
	next := &scheduler{open: true, done: map[string]string{}}
	*sched = scheduler{dead: true}
	r.s, r.m = newServer(r.w, next, r.bus)
	r.m.Recover(r.ctx)
	synctest.Wait()
	for id, p := range running {
		if !p.running() {
			o.faults = append(o.faults, "recovery ended the running container "+r.w.name(id))
		}
	}
	for id, was := range ready {
		if p, ok := r.w.pods[id]; was && (!ok || p.Status.Phase != state.PodReady) {
			o.faults = append(o.faults, "recovery lost the ready pod sandbox "+r.w.name(id))
		}
	}
	r.acked.Range(func(id, _ any) bool {
		if _, ok := r.w.pods[id.(string)]; !ok && !r.removed.Load() {
			o.faults = append(o.faults, "the pod sandbox that a client was told of is lost: "+r.w.name(id.(string)))
		}
		return true
	})
}

// check looks at the world after a run, then removes everything and looks again.
func (r *rig) check(order run, o *outcome, got []answer, sub *events.Subscription) {
	time.Sleep(2 * autoRemoveMaxPause) // what could not be written is written now
	synctest.Wait()
	fault := func(format string, args ...any) {
		o.faults = append(o.faults, r.w.aliases(fmt.Sprintf(format, args...)))
	}
	o.faults = append(o.faults, r.w.faults...)
	byName := map[string]int{}
	for _, p := range r.w.pods {
		byName[podName(p.Config.V.Metadata)]++
		if p.Status.Phase == state.PodReady && !r.w.sandboxes[p.ID] {
			fault("pod sandbox %s is ready in its record and not there", p.ID)
		}
	}
	for name, n := range byName {
		if n > 1 {
			fault("%d pod sandboxes have the name %s", n, name)
		}
	}
	for _, c := range r.w.containers {
		p := r.w.processes[c.ID]
		if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING && (p == nil || !p.running()) {
			fault("container %s runs in its record and has ended", c.ID)
		}
		if c.State() == runtimeapi.ContainerState_CONTAINER_CREATED && p != nil && p.running() {
			fault("container %s waits to be started in its record and runs", c.ID)
		}
		if _, ok := r.w.pods[c.PodID]; !ok {
			fault("container %s has lost its pod sandbox", c.ID)
		}
		if c.State() == runtimeapi.ContainerState_CONTAINER_EXITED && p != nil && p.running() {
			fault("container %s has ended in its record and runs", c.ID)
		}
	}
	for _, p := range r.m.State.Pods() {
		if err := r.m.RemovePod(r.ctx, p.ID); err != nil {
			fault("pod sandbox %s cannot be removed afterwards: %v", p.ID, err)
		}
	}
	synctest.Wait()
	for _, left := range r.w.leftovers() {
		fault("left behind: %s", left)
	}
	if n := len(r.m.podNames.claims) + len(r.m.containerNames.claims); n > 0 {
		fault("%d names are taken by nothing", n)
	}
	if n := len(r.m.podLocks.m) + len(r.m.containerLocks.m); n > 0 {
		fault("%d locks are held", n)
	}
	if n := len(r.m.exits.watches) + len(r.m.references.m); n > 0 {
		fault("%d watches and references are left", n)
	}
	r.bus.Close()
	o.faults = append(o.faults, r.checkEvents(order, sub)...)
}

// checkEvents: an object's events come at most once and in the order of its life; what is
// made again has another one after its deletion.
func (r *rig) checkEvents(order run, sub *events.Subscription) (faults []string) {
	last := map[string]runtimeapi.ContainerEventType{}
	rank := map[runtimeapi.ContainerEventType]int{
		runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT: 1, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT: 2,
		runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT: 3, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT: 4,
	}
	for {
		e, err := sub.Next(context.Background())
		if err != nil {
			return faults
		}
		stopped := runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
		if order.inject != nothing && e.Type == stopped && last[e.ID] == stopped {
			continue // of a start in between that has failed, or whose server has died
		}
		again := last[e.ID] == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT && e.Type == runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
		if before, ok := last[e.ID]; ok && rank[e.Type] <= rank[before] && !again {
			faults = append(faults, fmt.Sprintf("%s after %s of %s", e.Type, before, r.w.name(e.ID)))
		}
		last[e.ID] = e.Type
	}
}

// all goes on after the first fault: SUBPOD_TEST_ALL=1.
var all = func() *bool { b := os.Getenv("SUBPOD_TEST_ALL") != ""; return &b }()

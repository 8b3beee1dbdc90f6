package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/proc"
	"github.com/subpod/subpod/pkg/state"
)

// world is what outlives a server: the stored records, and the sandboxes, containers
// and processes of a node.
type world struct {
	mu         sync.Mutex
	pods       map[string]state.Pod
	containers map[string]state.Container
	renamed    []string // "as stored as told"
	sandboxes  map[string]bool
	rootfs     map[string]bool
	processes  map[string]*process
	alias      map[string]string // ID → a name that is the same in every run
	faults     []string          // what must never happen, whoever asks for it
}

// process is the init process of a container.
type process struct {
	started bool
	exited  chan struct{}
}

func newWorld() *world {
	return &world{
		pods: map[string]state.Pod{}, containers: map[string]state.Container{}, sandboxes: map[string]bool{},
		rootfs: map[string]bool{}, processes: map[string]*process{}, alias: map[string]string{},
	}
}

// name returns the alias of an ID.
func (w *world) name(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alias[id] == "" {
		w.alias[id] = fmt.Sprintf("#%d", len(w.alias))
	}
	return w.alias[id]
}

// leftovers lists what is still there.
func (w *world) leftovers() []string {
	var out []string
	add := func(kind string, ids []string) {
		for _, id := range ids {
			out = append(out, kind+" "+w.name(id))
		}
	}
	add("pod record", slices.Collect(maps.Keys(w.pods)))
	add("container record", slices.Collect(maps.Keys(w.containers)))
	add("sandbox", slices.Collect(maps.Keys(w.sandboxes)))
	add("root file system", slices.Collect(maps.Keys(w.rootfs)))
	add("process", slices.Collect(maps.Keys(w.processes)))
	slices.Sort(out)
	return out
}

// server is one server's view of the world: every operation stops at named steps,
// where the scheduler says how it goes on. After a kill none has an effect.
type server struct {
	*world
	step func(name string) error
}

// self stands for every init process: one that is alive.
var self, _ = proc.Identify(os.Getpid())

var (
	errKilled   = errors.New("this server was killed")
	errInjected = errors.New("injected failure")
	// errLate makes an operation fail after it has had its effect.
	errLate = fmt.Errorf("%w, after the effect", errInjected)
)

// do stops at a step, then has an effect on the world. With errLate it fails after
// that; once ctx has ended it fails before it.
func (s *server) do(ctx context.Context, name, id string, effect func()) error {
	err := s.step(name + " " + s.name(id))
	if err != nil && !errors.Is(err, errLate) {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	effect()
	return err
}

// The records. A write stops before it and after it, since whatever comes after it
// is another step.

func (s *server) write(name, id string, effect func()) error {
	if err := s.do(context.Background(), name, id, effect); err != nil {
		return err
	}
	if err := s.step("after " + name + " " + s.name(id)); errors.Is(err, errKilled) {
		return err
	}
	return nil
}

func find[R any](m map[string]R, ref string) (R, error) {
	if r, ok := m[ref]; ok {
		return r, nil
	}
	var none R
	return none, state.ErrNotFound
}

func sorted[R any](m map[string]R, keep func(R) bool) []R {
	var out []R
	for _, id := range slices.Sorted(maps.Keys(m)) {
		if keep(m[id]) {
			out = append(out, m[id])
		}
	}
	return out
}

func (s *server) Pod(id string) (state.Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return find(s.pods, id)
}

func (s *server) FindPod(ref string) (state.Pod, error) { return s.Pod(ref) }

func (s *server) Pods() []state.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sorted(s.pods, func(state.Pod) bool { return true })
}

func (s *server) PutPod(p state.Pod) error {
	return s.write("put pod", p.ID, func() { s.pods[p.ID] = p })
}

func (s *server) UpdatePod(id string, change func(*state.Pod) error) (p state.Pod, err error) {
	stepErr := s.write("update pod", id, func() {
		if p, err = find(s.pods, id); err == nil {
			if err = change(&p); err == nil {
				s.pods[id] = p
			}
		}
	})
	return p, errors.Join(err, stepErr)
}

func (s *server) DeletePod(id string) error {
	return s.write("delete pod", id, func() { delete(s.pods, id) })
}

func (s *server) Container(id string) (state.Container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return find(s.containers, id)
}

func (s *server) FindContainer(ref string) (state.Container, error) { return s.Container(ref) }

func (s *server) Containers() []state.Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sorted(s.containers, func(state.Container) bool { return true })
}

func (s *server) ContainersOf(podID string) []state.Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sorted(s.containers, func(c state.Container) bool { return c.PodID == podID })
}

func (s *server) PutContainer(c state.Container) error {
	return s.write("put container", c.ID, func() { s.containers[c.ID] = c })
}

func (s *server) UpdateContainer(id string, change func(*state.Container) error) (c state.Container, err error) {
	stepErr := s.write("update container", id, func() {
		if c, err = find(s.containers, id); err == nil {
			if err = change(&c); err == nil {
				s.containers[id] = c
			}
		}
	})
	return c, errors.Join(err, stepErr)
}

func (s *server) DeleteContainer(id string) error {
	return s.write("delete container", id, func() { delete(s.containers, id) })
}

// The sandboxes.

func (s *server) Build(ctx context.Context, _ sandbox.Plan, p *state.Pod) error {
	if err := s.do(ctx, "build", p.ID, func() { s.sandboxes[p.ID] = true }); err != nil {
		return err
	}
	return s.step("after build " + s.name(p.ID)) // what fails late is torn down as well
}

func (s *server) Teardown(ctx context.Context, p state.Pod) error {
	return s.do(ctx, "tear down", p.ID, func() {
		for id := range s.processes {
			if c, ok := s.containers[id]; ok && c.PodID == p.ID && s.processes[id].running() {
				s.faults = append(s.faults, "a sandbox was torn down below a running process")
			}
		}
		delete(s.sandboxes, p.ID)
	})
}

func (s *server) Lost(p state.Pod) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.sandboxes[p.ID] {
		return "its sandbox is gone"
	}
	return ""
}

func (s *server) Limit(state.Pod) ([]string, error) { return nil, nil }

func (s *server) Renamed(_ context.Context, plan sandbox.Plan, p state.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renamed = append(s.renamed, p.Config.V.Metadata.Name+" "+plan.Config.Metadata.Name)
}

func (s *server) Reconcile(context.Context, []state.Pod) error { return nil }

// The containers.

func (s *server) Prepare(ctx context.Context, _ container.Plan, _ state.Pod, c *state.Container) (*container.Prepared, error) {
	return &container.Prepared{}, s.do(ctx, "prepare", c.ID, func() { s.rootfs[c.ID] = true })
}

func (s *server) Create(ctx context.Context, _ *container.Prepared, p state.Pod, c *state.Container) error {
	return s.do(ctx, "create", c.ID, func() {
		if !s.sandboxes[p.ID] {
			s.faults = append(s.faults, "a container was created without a sandbox")
		}
		s.processes[c.ID] = &process{exited: make(chan struct{})}
		c.Allocated.Runtime = &oci.Container{Init: self}
	})
}

func (s *server) Clean(ctx context.Context, c state.Container) error {
	return s.do(ctx, "clean", c.ID, func() { s.forget(c) })
}

func (s *server) Delete(ctx context.Context, c state.Container) error {
	return s.do(ctx, "delete", c.ID, func() {
		s.forget(c)
		delete(s.rootfs, c.ID)
	})
}

// forget ends the process that the record knows of, or that may be there because the
// creation has not ended. The world is locked.
func (s *server) forget(c state.Container) {
	if c.Allocated.Runtime != nil || !c.Status.Created || c.Allocated.Remaking {
		s.end(c.ID)
		delete(s.processes, c.ID)
	}
}

// The processes.

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return p.started
	}
}

// end ends a container's process. The world is locked.
func (w *world) end(id string) {
	if p := w.processes[id]; p != nil {
		select {
		case <-p.exited:
		default:
			close(p.exited)
		}
	}
}

func (s *server) Start(ctx context.Context, id string, _ oci.Container) (err error) {
	stepErr := s.do(ctx, "start", id, func() {
		p := s.processes[id]
		if p == nil {
			err = oci.ErrNotRunning
			return
		}
		select {
		case <-p.exited:
			err = oci.ErrNotRunning
		default:
			p.started = true
		}
	})
	if stepErr == nil && err == nil {
		stepErr = s.step("after start " + s.name(id))
		if !errors.Is(stepErr, errKilled) {
			stepErr = nil
		}
	}
	return errors.Join(err, stepErr)
}

func (s *server) FinishStart(_ context.Context, id string, _ oci.Container) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.processes[id]
	return p != nil && p.started, nil
}

func (s *server) Signal(_ context.Context, id string, _ oci.Container, _ syscall.Signal, _ bool) (err error) {
	stepErr := s.do(context.Background(), "signal", id, func() {
		if s.processes[id] == nil {
			err = oci.ErrNotRunning
			return
		}
		s.end(id)
	})
	return errors.Join(err, stepErr)
}

func (s *server) Wait(ctx context.Context, id string, _ oci.Container) (oci.Exit, error) {
	s.mu.Lock()
	p := s.processes[id]
	s.mu.Unlock()
	if p == nil {
		return oci.Exit{Code: exitUnknown, Unknown: true, At: time.Now()}, nil
	}
	select {
	case <-p.exited:
		return oci.Exit{Code: 7, At: time.Now()}, nil
	case <-ctx.Done():
		return oci.Exit{}, ctx.Err()
	}
}

func (s *server) Update(context.Context, string, oci.Container, *specs.LinuxResources) error {
	return nil
}

// exit is a process that ends by itself.
func (s *server) exit(id string) error {
	return s.do(context.Background(), "exit", id, func() { s.end(id) })
}

// Sweep removes what no record knows of.
func (s *server) Sweep(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.sandboxes, func(id string, _ bool) bool { _, ok := s.pods[id]; return !ok })
	maps.DeleteFunc(s.rootfs, func(id string, _ bool) bool { _, ok := s.containers[id]; return !ok })
	maps.DeleteFunc(s.processes, func(id string, p *process) bool {
		_, ok := s.containers[id]
		if !ok {
			s.end(id)
		}
		return !ok
	})
	return nil
}

// aliases replaces IDs in a text by their aliases.
func (w *world) aliases(text string) string {
	for id, name := range w.alias {
		text = strings.ReplaceAll(text, id, name)
	}
	return text
}

package pod

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/state"
)

// fakePlugins are plugins that write down what they are told, and answer as answer says.
type fakePlugins struct {
	noPlugins
	mu     sync.Mutex
	told   []string
	answer func(ctx context.Context, m Moment) error
}

func (f *fakePlugins) hear(ctx context.Context, m Moment, what string) error {
	word := map[Moment]string{
		PodRun: "run", PodStop: "stop", PodRemove: "remove", ContainerCreated: "created", ContainerUndone: "undone",
		ContainerStart: "start", ContainerStarted: "started", ContainerStop: "stop", ContainerRemove: "remove",
	}[m]
	f.mu.Lock()
	f.told = append(f.told, word+" "+what)
	f.mu.Unlock()
	if f.answer == nil {
		return nil
	}
	return f.answer(ctx, m)
}

func (f *fakePlugins) Pod(ctx context.Context, m Moment, _ state.Pod) error {
	return f.hear(ctx, m, "pod")
}

func (f *fakePlugins) Container(ctx context.Context, m Moment, _ state.Pod, _ state.Container) error {
	return f.hear(ctx, m, "container")
}

// since returns what they were told since the last call.
func (f *fakePlugins) since() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	told := strings.Join(f.told, ", ")
	f.told = nil
	return told
}

// connect makes f the plugins of a server.
func (f *fakePlugins) connect(m *Manager) *fakePlugins {
	m.Plugins, m.notices.plugins, m.exits.notices.plugins = f, f, f
	return f
}

// TestPluginsSeePairs: each end of a pod sandbox follows a beginning of it, also when it is
// built again, and when a plugin refuses that.
func TestPluginsSeePairs(t *testing.T) {
	withSupervised(t, func(r *rig) {
		f := (&fakePlugins{}).connect(r.m)
		refused := errors.New("not this one")
		rebuild := func() error {
			return Restarter{r.m}.Rebuild(r.ctx, r.pod, func(state.Pod) bool { return true })
		}
		for _, step := range []struct {
			what   string
			do     func() error
			answer func(context.Context, Moment) error
			want   string
		}{
			{"stop", func() error { return r.m.StopPod(r.ctx, r.pod) }, nil, "stop container, stop pod"},
			{"rebuild, refused", rebuild, func(_ context.Context, m Moment) error {
				if m == PodRun {
					return refused
				}
				return nil
			}, "remove pod, run pod, stop pod"},
			{"rebuild", rebuild, nil, "remove pod, run pod"},
			{"remove", func() error { return r.m.RemovePod(r.ctx, r.pod) }, nil, "stop pod, remove container, remove pod"},
		} {
			f.answer = step.answer
			if err := step.do(); (err != nil) != (step.answer != nil) || err != nil && !errors.Is(err, refused) {
				t.Errorf("%s: %v", step.what, err)
			}
			if got := f.since(); got != step.want {
				t.Errorf("%s: plugins are told %q, want %q", step.what, got, step.want)
			}
		}
	})
}

// TestRemovalInterruptsPlugins: a plugin that is asked and does not answer does not hold up
// who stops or removes what it is asked about.
func TestRemovalInterruptsPlugins(t *testing.T) {
	for name, c := range map[string]struct {
		asked   Moment
		request func(*rig) error
	}{
		"start": {ContainerStart, func(r *rig) error { return r.m.StartContainer(r.ctx, r.ctr) }},
		"rebuild": {PodRun, func(r *rig) error {
			return Restarter{r.m}.Rebuild(r.ctx, r.pod, func(state.Pod) bool { return true })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withContainer)
				defer r.m.Close()
				if name == "rebuild" {
					if err := r.m.StopPod(r.ctx, r.pod); err != nil {
						t.Fatal(err)
					}
				}
				f := (&fakePlugins{}).connect(r.m)
				f.answer = func(ctx context.Context, m Moment) error {
					if m != c.asked {
						return nil
					}
					return hang(ctx)
				}
				answer := make(chan error, 1)
				go func() { answer <- c.request(r) }()
				synctest.Wait()
				begin := time.Now()
				if err := r.m.RemovePod(r.ctx, r.pod); err != nil {
					t.Fatal(err)
				}
				if waited := time.Since(begin); waited > 0 {
					t.Errorf("the removal took %v", waited)
				}
				if err := <-answer; !errors.Is(err, errdefs.ErrAborted) {
					t.Errorf("the other request: %v, want ErrAborted", err)
				}
			})
		})
	}
}

package container

import (
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// TestHealthOptions: a health check that would keep the server busy, or asks for what
// there is not, is refused, whoever the client is.
func TestHealthOptions(t *testing.T) {
	parse := func(change func(*api.Health)) error {
		h := &api.Health{Command: []string{"true"}}
		change(h)
		cfg := &runtimeapi.ContainerConfig{Annotations: map[string]string{}}
		if err := api.SetOptions(cfg.Annotations, &api.ContainerOptions{Health: h}); err != nil {
			t.Fatal(err)
		}
		_, err := parseOptions(cfg)
		return err
	}
	for _, good := range []func(*api.Health){
		func(*api.Health) {},
		func(h *api.Health) { h.Interval, h.Timeout, h.OnFailure = time.Second, time.Second, "kill" },
	} {
		if err := parse(good); err != nil {
			t.Error(err)
		}
	}
	for name, bad := range map[string]func(*api.Health){
		"no command":   func(h *api.Health) { h.Command = nil },
		"interval":     func(h *api.Health) { h.Interval = time.Nanosecond },
		"timeout":      func(h *api.Health) { h.Timeout = -1 },
		"start period": func(h *api.Health) { h.StartPeriod = -1 },
		"retries":      func(h *api.Health) { h.Retries = -1 },
		"on failure":   func(h *api.Health) { h.OnFailure = "reboot" },
	} {
		if err := parse(bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package container

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestLogPath: the log is a file below the pod's log directory, or the request is bad.
func TestLogPath(t *testing.T) {
	for path, want := range map[string]string{
		"": "", "c/0.log": "/logs/c/0.log", "a\nb": "/logs/a\nb",
		"../x": "bad", "/x": "bad", "a\x00b.log": "bad",
	} {
		got, err := logPath(&runtimeapi.PodSandboxConfig{LogDirectory: "/logs"}, &runtimeapi.ContainerConfig{LogPath: path})
		switch {
		case want == "bad" && !errors.Is(err, errdefs.ErrInvalidArgument):
			t.Errorf("log_path %q: %q, %v, want ErrInvalidArgument", path, got, err)
		case want != "bad" && (err != nil || got != want):
			t.Errorf("log_path %q: %q, %v, want %q", path, got, err, want)
		}
	}
}

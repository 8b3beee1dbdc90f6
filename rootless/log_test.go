package rootless

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

// Rootlesskit's complaint about root is no news to the user of a minimal view, whose
// parent is root of a user namespace; what else it says is passed on.
func TestRootlesskitLog(t *testing.T) {
	var out bytes.Buffer
	h := logHook{slog.New(slog.NewTextHandler(&out, nil))}
	for _, message := range []string{asRoot, "slirp4netns is too old"} {
		if err := h.Fire(&logrus.Entry{Level: logrus.WarnLevel, Message: message}); err != nil {
			t.Fatal(err)
		}
	}
	if said := out.String(); strings.Contains(said, "as the root user") || !strings.Contains(said, "too old") {
		t.Errorf("logged: %s", said)
	}
}

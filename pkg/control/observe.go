package control

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/logging"
	"github.com/subpod/subpod/pkg/trace"
)

// observeService lets users look at what the server does.
type observeService struct {
	traces *trace.Recorder
	level  *slog.LevelVar
}

// maxTraces bounds what one request is sent of the past.
const maxTraces = 1000

// Traces sends traces of requests.
func (s *observeService) Traces(ctx context.Context, req *api.TraceRequest, send func(*api.Trace) error) error {
	if req.Limit < 0 || req.Limit > maxTraces {
		return invalid("limit %d is not between 0 and %d", req.Limit, maxTraces)
	}
	match := func(t *trace.Trace) bool { return wanted(req, t) }
	var follow <-chan *trace.Trace
	if req.Follow {
		c, stop := s.traces.Follow() // before the past: none is missed
		defer stop()
		follow = c
	}
	past := s.traces.Recent
	if req.Slowest {
		past = s.traces.Slowest
	}
	sent := past(req.Limit, match)
	for _, t := range sent {
		if err := send(t); err != nil {
			return err
		}
	}
	for follow != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case t, ok := <-follow:
			if !ok {
				return fmt.Errorf("%w: this server ends, follow the next one", errdefs.ErrUnavailable)
			}
			if !match(t) || containsTrace(sent, t) {
				continue
			}
			if err := send(t); err != nil {
				return err
			}
		}
	}
	return nil
}

func containsTrace(all []*trace.Trace, t *trace.Trace) bool {
	for _, x := range all {
		if x == t {
			return true
		}
	}
	return false
}

func wanted(req *api.TraceRequest, t *trace.Trace) bool {
	if req.Method != "" && !strings.EqualFold(req.Method, t.Name) || t.Took < req.Least {
		return false
	}
	if req.Match == "" || strings.HasPrefix(t.TraceID.String(), req.Match) {
		return true
	}
	for _, v := range t.Attributes {
		_, short, _ := strings.Cut(v, "/") // of namespace/name
		if strings.HasPrefix(v, req.Match) || strings.HasPrefix(short, req.Match) {
			return true
		}
	}
	return false
}

// LogLevel sets the level of the log, and returns the one that holds.
func (s *observeService) LogLevel(_ context.Context, req *api.LogLevelRequest) (*api.LogLevelResponse, error) {
	if req.Level != "" {
		l, err := logging.ParseLevel(req.Level)
		if err != nil {
			return nil, invalid("level %w", err)
		}
		if old := s.level.Level(); old != l {
			s.level.Set(min(old, l)) // which of them logs it
			slog.Info("the level of the log is changed", "from", name(old), "to", name(l))
			s.level.Set(l)
		}
	}
	return &api.LogLevelResponse{Level: name(s.level.Level())}, nil
}

func name(l slog.Level) string { return strings.ToLower(l.String()) }

// Waiting lists the methods of the service which wait for something to happen, or for
// their client.
func Waiting() []string { return []string{"Wait", "Follow", "Session", "Traces"} }

package crash

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// runAtOnce is "subpod run -d --rm": pod sandbox and container in one session. What
// runs already is not run again.
func (p *pod) runAtOnce(ctx context.Context) error {
	if p.id != "" && p.isState(ctx, running) == nil {
		return nil
	}
	p.sandbox.Labels = map[string]string{api.LabelMadeBy: api.MadeByRun}
	p.sandbox.Annotations = map[string]string{api.AnnotationWhenDone: api.WhenDoneRemove}
	run := &api.RunRequest{Detach: true}
	var err error
	if run.Pod, err = proto.Marshal(p.sandbox); err != nil {
		return err
	}
	if run.Container, err = proto.Marshal(p.container); err != nil {
		return err
	}
	c, err := client.Dial(p.r.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Session(ctx, api.SessionRequest{Kind: api.SessionRun, Run: run}, api.Streams{
		Made: func(m api.Made) { p.podID, p.id = m.PodID, m.ContainerID },
	})
	return err
}

// end stops the container and waits until the daemon has removed all of it.
func (p *pod) end(ctx context.Context) error {
	if err := p.stop(ctx); err != nil && status.Code(err) != codes.NotFound {
		return err
	}
	for {
		err := p.gone(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the container has ended: %w", err)
		}
	}
}

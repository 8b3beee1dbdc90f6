package control

import (
	"cmp"
	"context"
	"errors"
	"io"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/stdio"
	"github.com/subpod/subpod/pkg/trace"
)

// Session joins a client's streams to a container or a pod's port.
func (s *service) Session(ctx context.Context, ss *api.SessionStreams) (*api.SessionExit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.Audit.Request(ctx, &ss.Request)
	switch ss.Request.Kind {
	case api.SessionRun:
		return s.runSession(ctx, ss)
	case api.SessionExec:
		return s.execSession(ctx, ss)
	case api.SessionAttach:
		return s.attachSession(ctx, ss)
	case api.SessionPortForward:
		ss.Ready()
		err := s.Sessions.PortForward(ctx, ss.Request.PodID, ss.Request.Port, &forwardStream{ss})
		return &api.SessionExit{}, err
	}
	return nil, invalid("unknown kind of session %q", ss.Request.Kind)
}

// runSession creates a pod sandbox with one container and starts it, attached unless the
// request says otherwise. It removes both where the container was never started.
func (s *service) runSession(ctx context.Context, ss *api.SessionStreams) (_ *api.SessionExit, err error) {
	run := ss.Request.Run
	if run == nil {
		return nil, invalid("a session that runs a container needs its configuration")
	}
	pod, ctr := &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
	if err := errors.Join(proto.Unmarshal(run.Pod, pod), proto.Unmarshal(run.Container, ctr)); err != nil {
		return nil, invalid("decode the configuration of a container to run: %v", err)
	}
	s.Audit.Request(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	s.Audit.Request(ctx, &runtimeapi.CreateContainerRequest{SandboxConfig: pod, Config: ctr})
	ctx, _ = s.Recorder.Begin(ctx, "Run", trace.Remote{})
	defer func() { finish(ctx, err) }()
	var podID, id string
	err = onceFree(ctx, s.State, func() (err error) {
		podID, id, err = s.runPod(ctx, run, pod, ctr)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		switch {
		case err != nil && run.PodID != "":
			err = errors.Join(err, s.Containers.RemoveContainer(ctx, id))
		case err != nil:
			err = errors.Join(err, s.Containers.RemoveUnstarted(ctx, podID, id))
		}
	}()
	ss.Made(api.Made{PodID: podID, ContainerID: id})
	if run.Create {
		return &api.SessionExit{}, nil
	}
	if run.Detach {
		return &api.SessionExit{}, s.Containers.StartContainer(ctx, id)
	}
	ss.Request.ContainerID, ss.Request.Start, ss.Request.Wait = id, true, true
	return s.attachSession(ctx, ss)
}

// finish ends the trace of "subpod run": the container runs, or never will. Of other
// sessions there is none.
func finish(ctx context.Context, err error) {
	if err != nil {
		trace.Finish(ctx, "Failed", err.Error())
		return
	}
	trace.Finish(ctx, "OK", "")
}

func (s *service) execSession(ctx context.Context, ss *api.SessionStreams) (*api.SessionExit, error) {
	if err := s.Sessions.CheckExec(ss.Request.ContainerID, ss.Request.Command); err != nil {
		return nil, err
	}
	ss.Ready()
	var options api.ExecOptions
	if ss.Request.Exec != nil {
		options = *ss.Request.Exec
	}
	if options.Detach {
		return &api.SessionExit{}, s.Sessions.ExecDetached(ctx, ss.Request.ContainerID, ss.Request.Command, ss.Request.TTY, options)
	}
	code, err := s.Sessions.ExecAs(ctx, ss.Request.ContainerID, ss.Request.Command, sessionStreams(ss), options)
	return &api.SessionExit{Code: code}, err
}

// attachSession joins the streams, then starts the container if the request says so.
func (s *service) attachSession(ctx context.Context, ss *api.SessionStreams) (*api.SessionExit, error) {
	req := ss.Request
	if err := s.Sessions.CheckAttach(req.ContainerID, req.TTY); err != nil {
		if req.Start { // created without a process: the start returns why
			err = cmp.Or(s.Containers.StartContainer(ctx, req.ContainerID), err)
		}
		return nil, err
	}
	streams := sessionStreams(ss)
	streams.Paced = req.Start // who started it is where its output goes, as of a program in a pipe
	attached := make(chan struct{})
	streams.Attached = func() { close(attached) }
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	exit := s.Containers.ExitOf(req.ContainerID)
	done := make(chan error, 1)
	go func() { done <- s.Sessions.Attach(ctx, req.ContainerID, streams) }()
	select {
	case <-attached:
	case err := <-done:
		return &api.SessionExit{}, err
	}
	if req.Start {
		if err := s.Containers.StartContainer(ctx, req.ContainerID); err != nil {
			cancel()
			<-done
			return nil, err
		}
		finish(ctx, nil)
	}
	// Not before: keys that detach, typed early, are no reason not to start it.
	ss.Ready()
	if err := <-done; err != nil || !req.Wait {
		return &api.SessionExit{}, err
	}
	st, err := exit(ctx)
	return &api.SessionExit{Code: st.ExitCode, Reason: st.Reason}, err
}

func sessionStreams(ss *api.SessionStreams) stdio.Streams {
	out := stdio.Streams{TTY: ss.Request.TTY}
	if ss.Request.Stdin {
		out.Stdin = ss.Input
	}
	if ss.Request.Output {
		out.Stdout = ss.Output
		if !out.TTY {
			out.Stderr = ss.Errors
		}
	}
	if out.TTY {
		out.Resize = ss.Sizes
	}
	return out
}

// forwardStream adapts a session to the client's side of a port-forward.
type forwardStream struct{ s *api.SessionStreams }

// Read implements io.Reader.
func (f *forwardStream) Read(p []byte) (int, error) { return f.s.Input.Read(p) }

// Write implements io.Writer.
func (f *forwardStream) Write(p []byte) (int, error) { return f.s.Output.Write(p) }

// Close ends the output; the input goes on.
func (f *forwardStream) Close() error { return f.s.EndOutput() }

// Reset ends both directions.
func (f *forwardStream) Reset() error {
	if c, ok := f.s.Input.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

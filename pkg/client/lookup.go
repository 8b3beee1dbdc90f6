package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

var (
	// ErrNotFound reports that no container, pod or image has that name or ID.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous reports that several have it.
	ErrAmbiguous = errors.New("ambiguous")
)

// DefaultNamespace is the Kubernetes namespace of the pods that subpod run creates.
const DefaultNamespace = "default"

// PodMetadata returns the metadata of a pod sandbox that a command creates. The
// server allows one pod sandbox at a time with the same metadata; here they depend on
// the name only, so a name belongs to one pod at a time, whichever command asks for
// it. The annotation api.AnnotationRunID distinguishes the pods that have the name one after
// the other.
func PodMetadata(namespace, name string) *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{Namespace: namespace, Name: name, Uid: name}
}

// RunID returns the ID of the run that created a pod sandbox (api.AnnotationRunID).
func RunID(p *runtimeapi.PodSandbox) string {
	if id := p.GetAnnotations()[api.AnnotationRunID]; id != "" {
		return id
	}
	return p.GetMetadata().GetUid() // as older versions had it
}

// Container is a container with its pod sandbox.
type Container struct {
	*runtimeapi.Container
	Pod *runtimeapi.PodSandbox
}

// Name returns the display name of the container: that of its pod if they have the
// same name, else POD/CONTAINER.
func (c Container) Name() string {
	pod, own := PodName(c.Pod), c.GetMetadata().GetName()
	if c.Pod.GetMetadata().GetName() == own {
		return pod
	}
	return pod + "/" + own
}

// PodName returns the display name of a pod sandbox: NAME, or NAMESPACE/NAME outside
// of DefaultNamespace.
func PodName(p *runtimeapi.PodSandbox) string {
	m := p.GetMetadata()
	if m.GetNamespace() == DefaultNamespace {
		return m.GetName()
	}
	return m.GetNamespace() + "/" + m.GetName()
}

// Containers returns all containers, including exited ones.
func (c *Client) Containers(ctx context.Context) ([]Container, error) {
	list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	pods, err := c.Pods(ctx)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*runtimeapi.PodSandbox, len(pods))
	for _, p := range pods {
		byID[p.Id] = p
	}
	out := make([]Container, 0, len(list.Containers))
	for _, ctr := range list.Containers {
		if p := byID[ctr.PodSandboxId]; p != nil {
			out = append(out, Container{ctr, p})
		}
	}
	return out, nil
}

// Pods returns all pod sandboxes.
func (c *Client) Pods(ctx context.Context) ([]*runtimeapi.PodSandbox, error) {
	resp, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	return resp.GetItems(), err
}

// Container returns a container by its name (see Container.Name), by the name of its
// pod if that has a single container, or by a prefix of its ID or of that of its pod.
// ErrNotFound, ErrAmbiguous.
func (c *Client) Container(ctx context.Context, ref string) (Container, error) {
	all, err := c.Containers(ctx)
	if err != nil {
		return Container{}, err
	}
	for _, match := range []func(Container) bool{
		func(x Container) bool { return x.Id == ref },
		func(x Container) bool { return x.Name() == ref },
		func(x Container) bool { return PodName(x.Pod) == ref },
		func(x Container) bool { return isPrefix(x.Id, ref) },
		func(x Container) bool { return isPrefix(x.PodSandboxId, ref) },
	} {
		var found []Container
		for _, x := range all {
			if match(x) {
				found = append(found, x)
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			// The last attempt if all are attempts of one container, else an error.
			if latest, ok := newest(found); ok {
				return latest, nil
			}
			names := make([]string, len(found))
			for i, x := range found {
				names[i] = x.Name()
			}
			return Container{}, fmt.Errorf("%w: %q matches %s", ErrAmbiguous, ref, strings.Join(names, ", "))
		}
	}
	return Container{}, fmt.Errorf("container %q: %w", ref, ErrNotFound)
}

// newest returns the last attempt if all are attempts of the same container.
func newest(list []Container) (Container, bool) {
	last := list[0]
	for _, x := range list[1:] {
		if x.Name() != last.Name() || x.PodSandboxId != last.PodSandboxId {
			return last, false
		}
		if x.GetMetadata().GetAttempt() > last.GetMetadata().GetAttempt() {
			last = x
		}
	}
	return last, true
}

// Pod returns a pod sandbox by its name or a prefix of its ID. ErrNotFound,
// ErrAmbiguous.
func (c *Client) Pod(ctx context.Context, ref string) (*runtimeapi.PodSandbox, error) {
	all, err := c.Pods(ctx)
	if err != nil {
		return nil, err
	}
	for _, match := range []func(*runtimeapi.PodSandbox) bool{
		func(p *runtimeapi.PodSandbox) bool { return p.Id == ref },
		func(p *runtimeapi.PodSandbox) bool { return PodName(p) == ref },
		func(p *runtimeapi.PodSandbox) bool { return isPrefix(p.Id, ref) },
	} {
		var found []*runtimeapi.PodSandbox
		for _, p := range all {
			if match(p) {
				found = append(found, p)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			return nil, fmt.Errorf("%w: %q matches %d pods; use an ID (see \"subpod pods\")", ErrAmbiguous, ref, len(found))
		}
	}
	return nil, fmt.Errorf("pod %q: %w", ref, ErrNotFound)
}

// minPrefix is the minimum length of a prefix of an ID.
const minPrefix = 3

func isPrefix(id, ref string) bool { return len(ref) >= minPrefix && strings.HasPrefix(id, ref) }

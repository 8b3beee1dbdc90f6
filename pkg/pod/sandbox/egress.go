package sandbox

import (
	"github.com/subpod/subpod/pkg/api"
)

// Egress is what the node allows pods that ask for connections at the host's speed
// (netns/egress).
type Egress struct {
	// Always switches the pods that say nothing, where it can be.
	Always bool
	// Off is why no pod can be switched; "" where pods can.
	Off func() string
	// Closed reports whether a named network leads nowhere.
	Closed func(network string) bool
}

// planEgress decides whether the pod's sockets are switched. A pod that asks for it and cannot
// have it is refused when it is built, not when it is read again.
func (p *Plan) planEgress(host Host) error {
	asked := p.Config.Annotations[api.AnnotationEgress]
	switch asked {
	case api.EgressUplink:
		return nil
	case "":
		if !host.Egress.Always {
			return nil
		}
	case api.EgressSwitched:
	default:
		return invalid("annotation %s: %q is neither %s nor %s", api.AnnotationEgress, asked, api.EgressSwitched, api.EgressUplink)
	}
	reason := p.noEgress(host)
	p.switched = reason == ""
	if asked != "" && reason != "" {
		p.refused = invalid("annotation %s: the pod's connections cannot be switched to the host's network: %s", api.AnnotationEgress, reason)
	}
	return nil
}

// noEgress returns what keeps the pod's sockets in its own network; "" for nothing.
func (p *Plan) noEgress(host Host) string {
	switch {
	case host.Egress.Off == nil:
		return "the node has no switching"
	case !p.network:
		return "it has no network of its own with a way out"
	case p.egress != 0:
		return "what it sends is limited (" + egressAnnotation + ", network.egress_rate), and the limit is that of its own network"
	}
	if n := p.names.attachments; len(n) > 0 {
		open := false
		for _, a := range n {
			open = open || !host.Egress.Closed(a.Network)
		}
		if !open {
			return "its networks are internal"
		}
	}
	return host.Egress.Off()
}

package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/subpod/subpod/netns"
)

// Setup implements netns.Network: ADD of all plugins, then the host's ports.
func (n *Network) Setup(ctx context.Context, pod netns.Pod) (netns.Result, error) {
	if err := checkPod(pod); err != nil {
		return netns.Result{}, err
	}
	p, err := n.acquire(ctx, pod.ID)
	if err != nil {
		return netns.Result{}, err
	}
	defer n.release(pod.ID, p)
	fail := func(err error) (netns.Result, error) {
		return netns.Result{}, fmt.Errorf("network of pod %s: %w", pod, err)
	}
	a, err := n.records.read(pod.ID)
	if err != nil {
		return fail(err)
	}
	if a != nil && a.Result != nil {
		return *a.Result, nil
	}
	if a != nil { // interrupted
		if err := n.disconnect(ctx, a, p); err != nil {
			return fail(err)
		}
	}
	a = &attachment{Pod: pod}
	if err := n.connect(ctx, a, p); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*n.Timeout)
		defer cancel()
		return fail(errors.Join(err, n.disconnect(undo, a, p)))
	}
	return *a.Result, nil
}

// connect is the sequence of Setup. disconnect undoes whatever it did.
func (n *Network) connect(ctx context.Context, a *attachment, p *podNet) error {
	list, err := n.network(ctx)
	if err != nil {
		return err
	}
	n.mu.Lock()
	a.Network, a.Ranges = list.Bytes, slices.Clone(n.ranges)
	n.mu.Unlock()
	n.warnIncapable(a, func(c string) bool { return capable(list, c) })
	if err := n.claims.Claim(a.Pod); err != nil {
		return err
	}
	if err := n.records.write(a); err != nil {
		return err
	}
	if err := netns.SkipDAD(a.Pod.NetNS); err != nil {
		return err
	}
	x := n.exec("ADD")
	made, err := x.lib().AddNetworkList(ctx, list, a.runtimeConf())
	if err != nil {
		return fmt.Errorf("CNI network %q: %w", list.Name, x.explain(err))
	}
	result, err := resultOf(made, a.Pod.NetNS)
	if err != nil {
		return fmt.Errorf("CNI network %q: %w", list.Name, err)
	}
	if err := n.expose(ctx, a.Pod, result, p); err != nil {
		return err
	}
	a.Result = &result
	return n.records.write(a)
}

// warnIncapable logs what the pod asks for and no plugin of the network does.
func (n *Network) warnIncapable(a *attachment, capable func(string) bool) {
	if len(a.Pod.Ports) > 0 && !capable("portMappings") {
		n.Log.Warn("the CNI network maps no ports: the pod's host ports will answer on the real host only",
			"pod", a.Pod.String(), "hint", `add the plugin "portmap" with the capability "portMappings"`)
	}
	if (a.Pod.IngressRate > 0 || a.Pod.EgressRate > 0) && !capable("bandwidth") {
		n.Log.Warn("the CNI network does not limit rates: the pod's bandwidth is not limited",
			"pod", a.Pod.String(), "hint", `add the plugin "bandwidth" with the capability "bandwidth"`)
	}
}

// expose publishes the host ports on the real host. The plugins (portmap) do so in
// the node network namespace.
func (n *Network) expose(ctx context.Context, pod netns.Pod, result netns.Result, p *podNet) error {
	if n.Ports == nil || len(pod.Ports) == 0 {
		return nil
	}
	if len(result.IPs) == 0 {
		return fmt.Errorf("%w: host ports for a pod without an address", netns.ErrBadPod)
	}
	for _, f := range netns.ForwardsOf(pod.Ports, result.IPs) {
		release, err := n.Ports.Expose(ctx, f)
		if release != nil {
			p.releases = append(p.releases, release)
		}
		if err != nil {
			return fmt.Errorf("publish %s port %d: %w", f.Proto, f.HostPort, err)
		}
	}
	return nil
}

// checkPod returns ErrBadPod for values that no file name or CNI argument can have.
func checkPod(pod netns.Pod) error {
	if pod.ID == "" || strings.Trim(pod.ID, "0123456789abcdefghijklmnopqrstuvwxyz-") != "" {
		return fmt.Errorf("%w: ID %q: want lower-case letters and digits", netns.ErrBadPod, pod.ID)
	}
	for _, s := range []string{pod.Name, pod.Namespace, pod.UID} {
		if strings.ContainsAny(s, ";=\x00") { // CNI_ARGS is k=v;k=v
			return fmt.Errorf("%w: %q holds a semicolon or an equals sign, which CNI cannot express", netns.ErrBadPod, s)
		}
	}
	return netns.CheckPorts(pod.Ports)
}

// Teardown implements netns.Network: all plugins are asked for DEL, also after one
// has failed. What could not be freed stays in the record, for another Teardown.
func (n *Network) Teardown(ctx context.Context, podID string) error {
	p, err := n.acquire(ctx, podID)
	if err != nil {
		return err
	}
	defer n.release(podID, p)
	a, err := n.records.read(podID)
	if err != nil {
		return err
	}
	if a == nil {
		return nil
	}
	if err := n.disconnect(ctx, a, p); err != nil {
		return fmt.Errorf("network of pod %s: %w", a.Pod, err)
	}
	return nil
}

// disconnect frees everything that the pod has, as far as it goes.
func (n *Network) disconnect(ctx context.Context, a *attachment, p *podNet) error {
	var errs []error
	p.releases = slices.DeleteFunc(p.releases, func(release func(context.Context) error) bool {
		err := release(ctx)
		errs = append(errs, err)
		return err == nil
	})
	if a.Network != nil {
		errs = append(errs, n.del(ctx, a))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	n.claims.Free(a.Pod.ID)
	return n.records.remove(a.Pod.ID)
}

func (n *Network) del(ctx context.Context, a *attachment) error {
	list, err := a.list()
	if err != nil {
		return fmt.Errorf("the configuration that the pod was connected with: %w", err)
	}
	x := n.exec("DEL")
	x.rest = len(list.Plugins)
	if err := x.explain(x.lib().DelNetworkList(ctx, list, a.runtimeConf())); err != nil {
		return fmt.Errorf("CNI network %q: %w (it will be tried again; to give up, remove %s)", list.Name, err, n.records.path(a.Pod.ID))
	}
	return nil
}

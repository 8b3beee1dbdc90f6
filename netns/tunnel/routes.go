package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
)

// Numbers by which the node's routes and rules are known as the tunnel's.
const (
	protocol = 182  // rtm_protocol of the routes
	table    = 5182 // of the routes to nodes' own addresses
	// priority of the rules: before the main table (32766). Services that are reached
	// without the tunnel have the one before.
	priority = 5182
	// fallback is the metric of routes that refuse packets while there is no device: else
	// the uplink would carry them to the host's network.
	fallback = 4096
)

// routes are those of the node to its peers.
type routes struct {
	now map[string][]string // of each family, as commands without their verb
}

// families are ip(8)'s options.
var families = []string{"-4", "-6"}

// begin raises the device and removes what an earlier tunnel has left, but for the routes that refuse: they go
// when the first configuration does not have them.
func (r *routes) begin(ctx context.Context) error {
	r.now = map[string][]string{}
	if err := ip(ctx, nil, "link", "set", "dev", Device, "up"); err != nil {
		return err
	}
	for _, f := range families {
		for _, p := range []int{priority - 1, priority} {
			for ip(ctx, nil, f, "rule", "delete", "priority", fmt.Sprint(p)) == nil {
			}
		}
		old, err := leftRoutes(ctx, f)
		if err != nil {
			if f == "-6" {
				continue // a kernel without IPv6
			}
			return err
		}
		r.now[f] = old
	}
	return nil
}

// leftRoutes lists the routes of an earlier tunnel that refuse.
func leftRoutes(ctx context.Context, family string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ip", family, "route", "show", "protocol", fmt.Sprint(protocol), "type", "unreachable").Output()
	if err != nil {
		return nil, fmt.Errorf("ip %s route show: %w", family, err)
	}
	var left []string
	for line := range strings.Lines(string(out)) {
		// unreachable 10.244.1.0/24 proto 182 metric 4096
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		if p, err := netip.ParsePrefix(words[1]); err == nil {
			left = append(left, refuse(p))
		}
	}
	return left, nil
}

// refuse is the route of a subnet while there is no device.
func refuse(p netip.Prefix) string {
	return fmt.Sprintf("route %s unreachable %s proto %d metric %d", verb, p, protocol, fallback)
}

// verb stands for what is done in the commands that routes keeps.
const verb = "*"

// set makes the routes those of c.
func (r *routes) set(ctx context.Context, c Config) error {
	for _, f := range families {
		want := commands(c, f == "-4")
		var batch []string
		for _, old := range r.now[f] {
			if !slices.Contains(want, old) {
				batch = append(batch, strings.Replace(old, verb, "delete", 1))
			}
		}
		// In their order: an address comes before the routes that use it.
		for _, w := range want {
			if slices.Contains(r.now[f], w) {
				continue
			}
			do := "replace"
			if strings.HasPrefix(w, "rule ") {
				do = "add"
			}
			batch = append(batch, strings.Replace(w, verb, do, 1))
		}
		if len(batch) == 0 {
			continue
		}
		if err := ip(ctx, batch, f, "-force", "-batch", "-"); err != nil {
			// Others may have changed them: the next call makes all of them anew.
			return errors.Join(fmt.Errorf("set the tunnel's routes: %w", err), r.begin(ctx))
		}
		r.now[f] = want
	}
	return nil
}

// commands returns the addresses, routes and rules of one family.
func commands(c Config, v4 bool) []string {
	mine := func(a netip.Addr) bool { return a.Is4() == v4 }
	var out, nodes []string
	source := ""
	for _, s := range c.Sources {
		if mine(s) {
			out = append(out, fmt.Sprintf("address %s %s dev %s nodad", verb, netip.PrefixFrom(s, s.BitLen()), Device))
			source = " src " + s.String()
		}
	}
	for _, p := range c.Peers {
		for _, pods := range p.Pods {
			if mine(pods.Addr()) {
				out = append(out, refuse(pods), fmt.Sprintf("route %s %s dev %s%s proto %d", verb, pods, Device, source, protocol))
			}
		}
		for _, a := range p.Addresses {
			if mine(a) && source != "" {
				nodes = append(nodes, fmt.Sprintf("route %s %s dev %s%s proto %d table %d", verb, a, Device, source, protocol, table))
			}
		}
	}
	if len(nodes) == 0 {
		return out
	}
	for _, d := range c.Direct {
		if mine(d.Addr()) {
			direct := fmt.Sprintf("rule %s to %s ipproto tcp dport %d lookup main priority %d", verb, d.Addr(), d.Port(), priority-1)
			if !slices.Contains(out, direct) { // names can have the same address twice
				out = append(out, direct)
			}
		}
	}
	out = append(out, nodes...)
	return append(out, fmt.Sprintf("rule %s lookup %d priority %d", verb, table, priority))
}

// ip runs ip(8), with lines as its standard input.
func ip(ctx context.Context, lines []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return err
}

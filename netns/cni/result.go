package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/subpod/subpod/netns"
)

// resultOf reads what the plugins made. The MTU is what the interface has.
func resultOf(made types.Result, podNS string) (netns.Result, error) {
	r, err := types100.GetResult(made)
	if err != nil {
		return netns.Result{}, fmt.Errorf("read the plugins' result: %w", err)
	}
	out := netns.Result{Interface: interfaceName}
	for _, i := range r.Interfaces {
		if i.Name == interfaceName && i.Sandbox != "" {
			out.MAC = i.Mac
		}
	}
	for _, ip := range r.IPs {
		// Addresses of other interfaces, such as the bridge's, are not the pod's.
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Name != interfaceName {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok || slices.Contains(out.IPs, a.Unmap()) {
			continue
		}
		out.IPs = append(out.IPs, a.Unmap())
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			out.Gateways = append(out.Gateways, gw.Unmap())
		}
	}
	if len(out.IPs) == 0 {
		return out, errors.New("the plugins gave the pod no address")
	}
	for _, route := range r.Routes {
		ones, _ := route.Dst.Mask.Size()
		dst, ok := netip.AddrFromSlice(route.Dst.IP)
		if !ok {
			continue
		}
		gw, _ := netip.AddrFromSlice(route.GW)
		out.Routes = append(out.Routes, netns.Route{Dst: netip.PrefixFrom(dst.Unmap(), ones), Gateway: gw.Unmap()})
	}
	err = netns.In(podNS, func() error {
		i, err := net.InterfaceByName(interfaceName)
		if err == nil {
			out.MTU = i.MTU
			out.MAC = i.HardwareAddr.String()
		}
		return err
	})
	if err != nil {
		return out, fmt.Errorf("look at the pod's %s: %w", interfaceName, err)
	}
	return out, nil
}

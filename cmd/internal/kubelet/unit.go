package kubelet

// Unit is a systemd user unit.
type Unit struct{ Name, Content string }

// Programs are the absolute paths that units name: systemd looks nothing up in a PATH.
type Programs struct {
	Subpod string
	Path   string   // PATH of the programs in the node
	Env    []string // more variables, NAME=VALUE
	Args   string   // more flags of "subpod kubernetes kubelet", after a space
}

// Units returns the units of a kubelet, of the tunnel to other nodes and, for clusters that
// run none as a pod, of kube-proxy. They end with the node and are started again with it,
// and by themselves.
func Units(p Programs) ([]Unit, error) {
	var out []Unit
	for _, name := range []string{"subpod-kubelet.service", "subpod-kube-proxy.service", "subpod-tunnel.service"} {
		text, err := execute(name, p)
		if err != nil {
			return nil, err
		}
		out = append(out, Unit{name, text})
	}
	return out, nil
}

package kubelet

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"text/template"

	"github.com/subpod/subpod/configs"
)

//go:embed templates
var files embed.FS

// yamlString quotes a string: YAML takes what JSON does.
func yamlString(s string) (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}

// templates are read when they are needed: all commands have this package in them.
var templates = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("").Funcs(template.FuncMap{
		"q":    yamlString,
		"unit": configs.UnitWord,
		"join": strings.Join,
	}).ParseFS(files, "templates/*"))
})

// ErrIDs says that the node has too few IDs.
var ErrIDs = errors.New("too few subordinate IDs")

// Options are what the user chooses.
type Options struct {
	NodeName          string
	NodeIP            string // an address of the host by which other nodes reach it; "" is the node's own
	MaxPods           int    // 0 is what fits
	UserNamespaces    bool   // pods may have user namespaces of their own (hostUsers: false)
	KubernetesVersion string // "" leaves it to kubeadm
	PodSubnet         string
	ServiceSubnet     string
	// SANs are further names and addresses of the API server.
	SANs []string
	// What to join, as "kubeadm token create --print-join-command" prints it.
	Server, Token string
	CACertHashes  []string
}

// DefaultOptions returns the subnets that overlap nothing of the node's.
func DefaultOptions() Options {
	return Options{PodSubnet: "10.244.0.0/16", ServiceSubnet: "10.96.0.0/12"}
}

// Check returns what is wrong with the options.
func (o Options) Check() error {
	if o.NodeIP != "" {
		if _, err := netip.ParseAddr(o.NodeIP); err != nil {
			return fmt.Errorf("--node-ip %q is no address", o.NodeIP)
		}
	}
	for flag, value := range map[string]string{"pod-subnet": o.PodSubnet, "service-subnet": o.ServiceSubnet} {
		for s := range strings.SplitSeq(value, ",") {
			if p, err := netip.ParsePrefix(s); err != nil || p != p.Masked() {
				return fmt.Errorf("--%s: %q is no subnet such as 10.244.0.0/16", flag, s)
			}
		}
	}
	if o.MaxPods < 0 {
		return fmt.Errorf("--max-pods %d is negative", o.MaxPods)
	}
	return nil
}

// Ignored are the preflight checks of kubeadm that fail in any node of an ordinary user,
// though nothing is wrong: SystemVerification wants the host's cgroup controllers and the
// configuration of its kernel.
var Ignored = []string{"SystemVerification"}

// values are what the templates read.
type values struct {
	Node
	Options
	Ignored    []string
	PatchesDir string
	Why        string // of MaxPods
	Body       bool   // a whole configuration, not a patch of a cluster's
}

func (v values) Limits() bool { return len(v.Missing()) == 0 }

func newValues(n Node, o Options) (values, error) {
	v := values{Node: n, Options: o, Ignored: Ignored, PatchesDir: PatchesDir}
	fit := n.UserNamespaces()
	if o.MaxPods == 0 {
		v.MaxPods = DefaultMaxPods
		if o.UserNamespaces {
			v.MaxPods = min(DefaultMaxPods, fit)
		}
	}
	switch {
	case !o.UserNamespaces:
		v.Why = "Pods with hostUsers: false do not run (--user-namespaces)"
	case fit == 0:
		return v, fmt.Errorf("%w: the node has %d IDs, and one pod with hostUsers: false needs %d, the node's own among them", ErrIDs, n.IDs, 2*IDsPerPod)
	case v.MaxPods > fit:
		return v, fmt.Errorf("%w: the node's %d IDs are enough for %d pods with hostUsers: false, not for %d", ErrIDs, n.IDs, fit, v.MaxPods)
	default:
		v.Why = fmt.Sprintf("Each may have a user namespace of its own (hostUsers: false); the node's %d IDs are enough for %d", n.IDs, fit)
	}
	return v, nil
}

func render(name string, n Node, o Options, body bool) (string, error) {
	v, err := newValues(n, o)
	if err != nil {
		return "", err
	}
	v.Body = body
	return execute(name, v)
}

func execute(name string, data any) (string, error) {
	var b bytes.Buffer
	err := templates().ExecuteTemplate(&b, name, data)
	return b.String(), err
}

// Kubelet returns a KubeletConfiguration that fits the node, for a kubelet that kubeadm
// does not configure.
func Kubelet(n Node, o Options) (string, error) { return render("kubelet.yaml", n, o, true) }

// Patch returns the part of it that a patch of kubeadm applies to a cluster's
// configuration: what this node cannot have from others.
func Patch(n Node, o Options) (string, error) { return render("kubelet.yaml", n, o, false) }

// Proxy returns a KubeProxyConfiguration: kube-proxy may not set what belongs to the host.
func Proxy(n Node, o Options) (string, error) { return render("kube-proxy.yaml", n, o, false) }

// Init returns the configuration of kubeadm init: the node's and the cluster's.
func Init(n Node, o Options) (string, error) { return render("init.yaml", n, o, false) }

// Join returns the configuration of kubeadm join.
func Join(n Node, o Options) (string, error) { return render("join.yaml", n, o, false) }

// Reset returns the configuration of kubeadm reset.
func Reset(n Node, o Options) (string, error) { return render("reset.yaml", n, o, false) }

// Upgrade returns the configuration of kubeadm upgrade, of a control plane and of a worker.
func Upgrade(n Node, o Options) (string, error) { return render("upgrade.yaml", n, o, false) }

// Tunnel returns what "subpod kubernetes tunnel" needs to be allowed by the cluster.
func Tunnel(n Node, o Options) (string, error) { return render("tunnel.yaml", n, o, false) }

// Resize returns what lets the API server refuse to resize pods of this node in place, for
// one without the controllers that it takes. It is an error where none is missing.
func Resize(n Node, o Options) (string, error) {
	if len(n.Missing()) == 0 {
		return "", errors.New("pods of this node can be resized in place: all controllers are delegated, and nothing has to refuse it")
	}
	if o.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return "", err
		}
		o.NodeName = strings.ToLower(name) // as a kubelet does
	}
	return render("resize.yaml", n, o, false)
}

// File is a file for Dir.
type File struct{ Name, Content string }

// Files returns all that kubeadm reads in the node, and what is for the cluster. The one
// of join is among them where the options say what to join, that of Resize where it is needed.
func Files(n Node, o Options) ([]File, error) {
	var out []File
	for _, f := range []struct {
		name string
		make func(Node, Options) (string, error)
	}{
		{"kubelet.yaml", Kubelet}, {"kube-proxy.yaml", Proxy}, {"init.yaml", Init},
		{"reset.yaml", Reset}, {"upgrade.yaml", Upgrade}, {"tunnel.yaml", Tunnel},
		{"patches/kubeletconfiguration+merge.yaml", Patch}, {"join.yaml", Join}, {"resize.yaml", Resize},
	} {
		if f.name == "join.yaml" && o.Server == "" || f.name == "resize.yaml" && len(n.Missing()) == 0 {
			continue
		}
		content, err := f.make(n, o)
		if err != nil {
			return nil, err
		}
		out = append(out, File{f.name, content})
	}
	return out, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/cmd/internal/kubelet"
	"github.com/subpod/subpod/rootless"
)

func newKubernetes(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "kubernetes",
		Aliases: []string{"k8s"},
		Short:   "Run a kubelet in the node",
		Long: `Prints and writes what a kubelet and kubeadm need to run in subpod's node, checks what
they would refuse there, and runs the kubelet. docs/kubernetes.md has the steps.`,
		Example: "  subpod kubernetes check\n  subpod kubernetes config --write\n  subpod kubernetes kubelet &\n" +
			"  subpod nsenter -- kubeadm init --config=/etc/kubernetes/subpod/init.yaml",
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []*cobra.Command{newKubernetesConfig(a), newKubernetesCheck(a), newKubernetesUnit(a), newKubernetesKubelet(a), newKubernetesTunnel(a)} {
		cmd.AddCommand(c)
	}
	return cmd
}

// kubernetesNode reads from the running daemon what a kubelet depends on.
func kubernetesNode(ctx context.Context, conn *connection) (kubelet.Node, error) {
	n := kubelet.Node{
		Socket:       conn.config.Daemon.Socket,
		ResolvConf:   filepath.Join(conn.config.Daemon.RunDir, "node", "resolv.conf"),
		Expose:       conn.config.Network.Expose,
		WaitsForCIDR: conn.config.Network.WaitForPodCIDR || conn.config.Network.Backend == "cni",
	}
	info, err := readNode(ctx, conn.Client)
	if err != nil {
		return n, err
	}
	if info.Cgroup.Delegated {
		n.Controllers = info.Cgroup.Controllers
	}
	n.IDs = min(countIDs(info.Node.UIDMap), countIDs(info.Node.GIDMap))
	return n, nil
}

// countIDs returns how many IDs a map has from 0 on without a gap.
func countIDs(ranges []idRange) uint32 {
	next := uint32(0)
	for _, r := range ranges {
		if r.Container != next {
			break
		}
		next += r.Size
	}
	return next
}

func newKubernetesConfig(a *app) *cobra.Command {
	o := kubelet.DefaultOptions()
	var write bool
	cmd := &cobra.Command{
		Use:   "config [flags] [kubelet | init | join | reset | upgrade | patch | proxy | tunnel | resize]",
		Short: "Print the configuration of a kubelet, kubeadm or kube-proxy for this node",
		Long: `Prints a configuration that fits this node: of a kubelet that kubeadm does not configure
(kubelet, the default), of "kubeadm init", "join", "reset" or "upgrade", the patch by which they fit a
cluster's kubelet configuration to the node, of kube-proxy, what a cluster allows its nodes
for "subpod kubernetes tunnel" (tunnel), or what lets it refuse to resize pods of this node in
place, where the cgroup controllers for that are not delegated (resize).

With --write all of them go to ` + kubelet.Dir + ` of the node, where kubeadm finds
the patch; but for the address of --node-ip nothing else of the node is changed.`,
		Example: "  subpod kubernetes config > kubelet.yaml\n  subpod kubernetes config --write\n" +
			"  subpod kubernetes config --write --node-ip 192.0.2.7 --server 192.0.2.1:6443 --token T --ca-cert-hash sha256:H",
		Args: between(0, 1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := o.Check(); err != nil {
				return usageError{err}
			}
			n, err := kubernetesNode(cmd.Context(), conn)
			if err != nil {
				return err
			}
			if o.KubernetesVersion == "" {
				o.KubernetesVersion = kubeadmVersion(cmd.Context())
			}
			if write {
				return writeKubernetes(cmd, conn, n, o)
			}
			return printKubernetes(cmd.OutOrStdout(), args, n, o)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&write, "write", false, "write them into the node instead")
	f.StringVar(&o.NodeName, "node-name", "", "name of the node (default: the host's)")
	f.StringVar(&o.NodeIP, "node-ip", "", "the host's `address` by which other nodes reach this one (default: the node's own, 10.0.2.100)")
	f.IntVar(&o.MaxPods, "max-pods", 0, "how many pods the node may run (default: 110)")
	f.BoolVar(&o.UserNamespaces, "user-namespaces", false, "for a kubelet that is run with this flag: no more pods than can have user namespaces of their own")
	f.StringVar(&o.KubernetesVersion, "kubernetes-version", "", "version of the control plane (default: kubeadm's)")
	f.StringVar(&o.PodSubnet, "pod-subnet", o.PodSubnet, "addresses of the cluster's pods")
	f.StringVar(&o.ServiceSubnet, "service-subnet", o.ServiceSubnet, "addresses of the cluster's services")
	f.StringSliceVar(&o.SANs, "san", nil, "further `name` or address of the API server")
	f.StringVar(&o.Server, "server", "", "join: `address:port` of the API server")
	f.StringVar(&o.Token, "token", "", "join: the bootstrap token")
	f.StringSliceVar(&o.CACertHashes, "ca-cert-hash", nil, "join: `sha256:…` of the cluster's CA")
	return cmd
}

// kubeadmVersion asks kubeadm, which else asks the internet for the newest one.
func kubeadmVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "kubeadm", "version", "-o", "short").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func printKubernetes(w io.Writer, args []string, n kubelet.Node, o kubelet.Options) error {
	kind := "kubelet"
	if len(args) > 0 {
		kind = args[0]
	}
	render := map[string]func(kubelet.Node, kubelet.Options) (string, error){
		"kubelet": kubelet.Kubelet, "init": kubelet.Init, "join": kubelet.Join, "reset": kubelet.Reset, "upgrade": kubelet.Upgrade, "patch": kubelet.Patch, "proxy": kubelet.Proxy, "tunnel": kubelet.Tunnel, "resize": kubelet.Resize,
	}[kind]
	if render == nil {
		return usagef("no configuration %q: kubelet, init, join, reset, upgrade, patch, proxy, tunnel or resize", kind)
	}
	if kind == "join" && o.Server == "" {
		return usagef("what to join is missing: --server, --token and --ca-cert-hash, as \"kubeadm token create --print-join-command\" prints them")
	}
	text, err := render(n, o)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, text)
	return err
}

func writeKubernetes(cmd *cobra.Command, conn *connection, n kubelet.Node, o kubelet.Options) error {
	files, err := kubelet.Files(n, o)
	if err != nil {
		return err
	}
	// Pods of the cluster's may write there.
	dir, err := openDir(filepath.Join(conn.config.Daemon.DataDir, "kubernetes"))
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, f := range files {
		// The token of join is in one of them.
		if err := cli.ReplaceFile(dir, filepath.Join(filepath.Base(kubelet.Dir), f.Name), f.Content, 0o600); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), filepath.Join(kubelet.Dir, f.Name))
	}
	if o.NodeIP == "" {
		return nil
	}
	// kubeadm listens on it before there is a kubelet.
	address, err := netip.ParseAddr(o.NodeIP)
	if err != nil {
		return err
	}
	code, err := rootless.Enter(cmd.Context(), conn.config.Daemon.RunDir,
		[]string{"ip", "address", "replace", netip.PrefixFrom(address, address.BitLen()).String(), "dev", "lo"},
		rootless.EnterOptions{Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr()})
	if err == nil && code != 0 {
		err = fmt.Errorf("put %s on the node's loopback: ip: exit code %d", o.NodeIP, code)
	}
	return err
}

func newKubernetesKubelet(a *app) *cobra.Command {
	var inside bool
	p := kubelet.Process{}
	cmd := &cobra.Command{
		Use:   "kubelet [flags] [-- FLAG...]",
		Short: "Run a kubelet in the node, in the foreground",
		Long: `Runs the kubelet of PATH in the node. Without flags of its own it is the one that
"kubeadm init" or "kubeadm join" configures: it waits until they have.

More than "subpod nsenter -- kubelet", it gives the kubelet cgroup v2 on hosts that have
cgroup v1, too, and puts the address of --node-ip on the node's loopback.

With --user-namespaces pods with hostUsers: false run: the kubelet gives them IDs of the
node only, which must be enough for maxPods, and volumes of all pods are in memory.`,
		Example: "  subpod kubernetes kubelet\n  subpod kubernetes kubelet -- --config=/etc/kubernetes/subpod/kubelet.yaml --kubeconfig=…",
		RunE: func(cmd *cobra.Command, args []string) error {
			if inside {
				p.Args = args
				return runKubelet(cmd.Context(), p)
			}
			cfg, err := clientConfig(a.flags, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			argv := append([]string{exe, "kubernetes", "kubelet", "--in-node", "--program", p.Program,
				fmt.Sprintf("--user-namespaces=%v", p.UserNamespaces), "--"}, args...)
			code, err := rootless.Enter(cmd.Context(), cfg.Daemon.RunDir, argv,
				rootless.EnterOptions{Dir: "/", Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
			if err == nil && code != 0 {
				err = exitStatus(code)
			}
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&p.Program, "program", "kubelet", "the kubelet")
	cmd.Flags().BoolVar(&p.UserNamespaces, "user-namespaces", false, "let pods have user namespaces of their own")
	cmd.Flags().BoolVar(&inside, "in-node", false, "the caller is in the node")
	must(cmd.Flags().MarkHidden("in-node"))
	return cmd
}

func runKubelet(ctx context.Context, p kubelet.Process) (err error) {
	if os.Getuid() != 0 {
		return errors.New("--in-node is for root of the node")
	}
	if len(p.Args) == 0 {
		if p.Args, err = kubelet.Args(ctx, ""); err != nil {
			return err
		}
	}
	return p.Exec()
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/cmd/internal/kubelet"
	"github.com/subpod/subpod/rootless"
)

func newKubernetesCheck(a *app) *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what a kubelet or kubeadm would refuse in the node, and how to fix it",
		Long: `Checks the node and this host for what a kubelet and kubeadm need beyond "subpod doctor".
It changes nothing.

Exit codes: 0 if a kubelet can run (there may be warnings), 1 if not.`,
		Args: exactly(0),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			h, err := kubernetesHost(cmd.Context(), conn)
			if err != nil {
				return err
			}
			return showChecks(cmd.OutOrStdout(), kubelet.Check(h), asJSON, quiet)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: {\"level\", \"checks\": [{\"check\", \"level\", \"what\", \"fix\"}]}")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print problems only")
	return cmd
}

// look prints what the checks read of the node, one fact a line.
const look = `echo "cgroup $(stat -f -c %T /sys/fs/cgroup 2>/dev/null)"
echo "inode $(stat -c %d:%i /etc/kubernetes 2>/dev/null)"
ip -o address show 2>/dev/null | awk '{ sub("/.*", "", $4); print "address", $4 }'
for p in "$@"; do
	command -v "$p" >/dev/null || continue
	version=
	[ "$p" != kubelet ] || version=$(kubelet --version 2>/dev/null)
	echo "program $p $version"
done
sed -n 's/^ *value: /node-ip /p' ` + kubelet.Dir + `/init.yaml ` + kubelet.Dir + `/join.yaml 2>/dev/null
true`

func kubernetesHost(ctx context.Context, conn *connection) (kubelet.Host, error) {
	h := kubelet.Host{CPUs: runtime.NumCPU(), Programs: map[string]string{}}
	n, err := kubernetesNode(ctx, conn)
	if err != nil {
		return h, err
	}
	h.Node = n
	if h.Hostname, err = os.Hostname(); err != nil {
		return h, err
	}
	h.User = fmt.Sprint(os.Getuid())
	if u, err := user.Current(); err == nil {
		h.User = u.Username
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		h.MemoryMB = int(uint64(info.Totalram) * uint64(info.Unit) >> 20)
	}
	var out bytes.Buffer
	code, err := rootless.Enter(ctx, conn.config.Daemon.RunDir, append([]string{"sh", "-c", look, "look"}, kubelet.Wanted...),
		rootless.EnterOptions{Dir: "/", Stdout: &out, Stderr: os.Stderr})
	if err == nil && code != 0 {
		err = fmt.Errorf("look around in the node: exit code %d", code)
	}
	if err != nil {
		return h, err
	}
	readLook(&h, out.String(), filepath.Join(conn.config.Daemon.DataDir, "kubernetes"))
	return h, nil
}

// readLook reads the output of look. kubernetes is the directory that the node's
// /etc/kubernetes is.
func readLook(h *kubelet.Host, text, kubernetes string) {
	var addresses []string
	inode := "none"
	var st unix.Stat_t
	if err := unix.Stat(kubernetes, &st); err == nil {
		inode = fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	}
	for line := range strings.Lines(text) {
		fact, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch fact {
		case "cgroup":
			h.Unified = value == "cgroup2fs"
		case "inode":
			h.Durable = value == inode
		case "address":
			addresses = append(addresses, value)
		case "program":
			name, version, _ := strings.Cut(value, " ")
			h.Programs[name] = version
		case "node-ip":
			h.NodeIP = strings.Trim(value, `"`)
		}
	}
	h.HasNodeIP = slices.Contains(addresses, h.NodeIP)
}

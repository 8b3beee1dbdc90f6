package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/cmd/internal/kubelet"
)

func newKubernetesUnit(_ *app) *cobra.Command {
	var write, userNamespaces bool
	cmd := &cobra.Command{
		Use:   "unit [flags]",
		Short: "Print systemd user units for a kubelet, kube-proxy and the tunnel to other nodes",
		Long: `Prints systemd user units for a kubelet, for kube-proxy and for "subpod kubernetes tunnel", which are started
again whenever they end, and end and start with the unit subpod.service (configs/subpod.service).
kubeadm's clusters run kube-proxy as a pod: they need no unit of it.`,
		Example: "  subpod kubernetes unit --write && systemctl --user daemon-reload && systemctl --user enable --now subpod-kubelet",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			account, err := accountSetup()
			if err != nil {
				return err
			}
			dir, env, err := account.Units(cmd.Context())
			if err != nil {
				return err
			}
			programs := kubelet.Programs{Subpod: exe, Path: os.Getenv("PATH"), Env: env}
			if userNamespaces {
				programs.Args = " --user-namespaces"
			}
			units, err := kubelet.Units(programs)
			if err != nil {
				return err
			}
			if write {
				return writeUnits(cmd.OutOrStdout(), dir, units)
			}
			for i, u := range units {
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				fmt.Fprint(cmd.OutOrStdout(), u.Content)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&write, "write", false, "write them to ~/.config/systemd/user instead")
	cmd.Flags().BoolVar(&userNamespaces, "user-namespaces", false, "with this flag of \"subpod kubernetes kubelet\"")
	return cmd
}

func writeUnits(out io.Writer, dir string, units []kubelet.Unit) error {
	root, err := openDir(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, u := range units {
		if err := cli.ReplaceFile(root, u.Name, u.Content, 0o644); err != nil {
			return err
		}
		fmt.Fprintln(out, filepath.Join(dir, u.Name))
	}
	return nil
}

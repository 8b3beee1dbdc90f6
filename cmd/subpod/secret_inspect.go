package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/config"
)

// inspectedSecret is what "secret inspect" prints of a secret, with the names that Podman
// and Docker have.
type inspectedSecret struct {
	ID         string    `json:"ID"`
	UpdatedAt  time.Time `json:"UpdatedAt"`
	Spec       struct{ Name string }
	SecretData string `json:"SecretData,omitempty"`
}

// secretAt returns what there is of a secret, without its content. client.ErrNotFound.
func secretAt(cfg *config.Config, name string) (inspectedSecret, error) {
	s := inspectedSecret{ID: name}
	s.Spec.Name = name
	err := fs.ErrNotExist
	var st os.FileInfo
	if isName(name) { // no path
		st, err = os.Lstat(filepath.Join(secretsDir(cfg), name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("secret %q: %w", name, client.ErrNotFound)
	}
	if err == nil {
		s.UpdatedAt = st.ModTime()
	}
	return s, err
}

func newSecretInspect(a *app) *cobra.Command {
	var show bool
	out := &format{value: "json"}
	cmd := &cobra.Command{
		Use:     "inspect [flags] NAME...",
		Short:   "Show details of secrets, with --showsecret their content",
		Example: "  subpod secret inspect --showsecret -f '{{.SecretData}}' token",
		Args:    atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			cfg, err := a.flags.Load()
			if err != nil {
				return err
			}
			list := []inspectedSecret{}
			err = each(args, func(name string) error {
				s, err := secretAt(cfg, name)
				if err == nil && show {
					var text []byte
					text, err = readSecret(cfg, name)
					s.SecretData = string(text)
				}
				if err == nil {
					list = append(list, s)
				}
				return err
			})
			return errors.Join(printList(cmd.OutOrStdout(), out, list, nil), err)
		},
	}
	out.addGoFormat(cmd, "f")
	cmd.Flags().BoolVar(&show, "showsecret", false, "show the content, too")
	addRefused(cmd.Flags(), refused{"pretty": notYet + "use a template of --format"})
	return cmd
}

func newSecretExists(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "exists NAME",
		Short:   "Exit with 0 if there is the secret, with 1 if not",
		Example: "  subpod secret exists token || subpod secret create token token.txt",
		Args:    exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, err := a.flags.Load()
			if err != nil {
				return err
			}
			_, err = secretAt(cfg, args[0])
			if errors.Is(err, client.ErrNotFound) {
				return exitStatus(exitError)
			}
			return err
		},
	}
}

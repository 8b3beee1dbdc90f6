package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/config"
)

// Secrets are files in the data directory that only this user can read. The server reads
// them there when it makes a container.

func secretsDir(cfg *config.Config) string { return filepath.Join(cfg.Daemon.DataDir, "secrets") }

// maxSecret is the size of the largest secret in bytes, as Podman has it.
const maxSecret = 512_000

func readSecret(cfg *config.Config, name string) ([]byte, error) {
	text, err := readFile(filepath.Join(secretsDir(cfg), name), maxSecret)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("secret %q: %w; make it with \"subpod secret create\"", name, client.ErrNotFound)
	}
	return text, err
}

func newSecret(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Keep secrets for containers",
		Long: `Secrets are kept in the data directory, in files that only this user can read; they are
not encrypted. "run --secret NAME" gives one to a container, as /run/secrets/NAME.`,
		Example: "  printf %s \"$TOKEN\" | subpod secret create token -\n  subpod run --rm --secret token busybox cat /run/secrets/token",
		Args:    none(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []*cobra.Command{newSecretCreate(a), newSecretLs(a), newSecretRm(a), newSecretInspect(a), newSecretExists(a)} {
		c.Args = usageArgs(c.Args)
		cmd.AddCommand(c)
	}
	return cmd
}

func newSecretCreate(a *app) *cobra.Command {
	var replace, env bool
	cmd := &cobra.Command{
		Use:     "create [flags] NAME FILE|-",
		Short:   "Keep the content of a file, or of standard input, as a secret",
		Example: "  subpod secret create token ./token.txt",
		Args:    exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.flags.Load()
			if err != nil {
				return err
			}
			if !isName(args[0]) {
				return usagef("invalid name %q of a secret: expected letters, digits, '_', '.' and '-', beginning with a letter or digit", args[0])
			}
			text, err := secretText(args[1], env)
			if err != nil {
				return err
			}
			if len(text) == 0 {
				return errors.New("the secret is empty")
			}
			path := filepath.Join(secretsDir(cfg), args[0])
			if _, err := os.Lstat(path); err == nil && !replace {
				return fmt.Errorf("there is a secret %s; replace it with --replace", args[0])
			}
			if err := os.MkdirAll(secretsDir(cfg), 0o700); err != nil {
				return err
			}
			if err := writeSecret(path, text); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "replace the secret of that name")
	cmd.Flags().BoolVar(&env, "env", false, "FILE is the name of a variable of the environment")
	addRefused(cmd.Flags(), refused{
		"driver/d": "secrets are files (see \"subpod secret --help\")", "driver-opts": "secrets are files (see \"subpod secret --help\")",
		"ignore": notYet + "\"subpod secret exists\" says whether there is one", "label/l": notYet + "secrets have a name alone",
	})
	return cmd
}

func secretText(source string, env bool) ([]byte, error) {
	if !env {
		return readSource(source, maxSecret)
	}
	value, ok := os.LookupEnv(source)
	if !ok {
		return nil, fmt.Errorf("the variable %s is not set", source)
	}
	return []byte(value), nil
}

// writeSecret replaces a secret by a whole one, or leaves it.
func writeSecret(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".secret-*")
	if err != nil {
		return fmt.Errorf("keep the secret: %w", err)
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o600), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("keep the secret: %w", err)
	}
	return nil
}

// secretRow is a row of the output of "secret ls".
type secretRow struct {
	Name    string    `json:"name"`
	Updated time.Time `json:"updated"`
}

func newSecretLs(a *app) *cobra.Command {
	var quiet, noHeading bool
	var out *format
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List secrets",
		Example: "  subpod secret ls",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			cfg, err := a.flags.Load()
			if err != nil {
				return err
			}
			entries, err := os.ReadDir(secretsDir(cfg))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			rows := []secretRow{}
			for _, e := range entries {
				if st, err := e.Info(); err == nil && !strings.HasPrefix(e.Name(), ".") {
					rows = append(rows, secretRow{e.Name(), st.ModTime()})
				}
			}
			if quiet {
				for _, r := range rows {
					fmt.Fprintln(cmd.OutOrStdout(), r.Name)
				}
				return nil
			}
			out.noHeading = noHeading
			return printList(cmd.OutOrStdout(), out, rows, []column[secretRow]{
				{"NAME", func(r secretRow) string { return r.Name }},
				{"UPDATED", func(r secretRow) string { return ago(r.Updated) }},
			})
		},
	}
	out = addFormat(cmd)
	out.addGoFormat(cmd, "")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	cmd.Flags().BoolVarP(&noHeading, "noheading", "n", false, "leave out the line of titles")
	addRefused(cmd.Flags(), refused{"filter/f": notYet + "use grep, or a template of --format"})
	return cmd
}

func newSecretRm(a *app) *cobra.Command {
	var all, ignore bool
	cmd := &cobra.Command{
		Use:     "rm [flags] NAME...",
		Short:   "Remove secrets; containers that have them keep them",
		Example: "  subpod secret rm token",
		Args:    argsOrAll(&all),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.flags.Load()
			if err != nil {
				return err
			}
			if all {
				entries, err := os.ReadDir(secretsDir(cfg))
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				for _, e := range entries {
					if isName(e.Name()) {
						args = append(args, e.Name())
						continue
					}
					// What a "secret create" that was killed has left.
					if err := os.Remove(filepath.Join(secretsDir(cfg), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
						return err
					}
				}
			}
			return each(args, func(name string) error {
				err := fs.ErrNotExist
				if isName(name) { // no path
					err = os.Remove(filepath.Join(secretsDir(cfg), name))
				}
				if errors.Is(err, fs.ErrNotExist) {
					if ignore {
						return nil
					}
					return fmt.Errorf("secret %q: %w", name, client.ErrNotFound)
				}
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), name)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all secrets")
	cmd.Flags().BoolVarP(&ignore, "ignore", "i", false, "ignore what does not exist")
	return cmd
}

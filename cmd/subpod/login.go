package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/control"
)

func newLogin(a *app) *cobra.Command {
	req := &control.LoginRequest{}
	var fromStdin bool
	cmd := &cobra.Command{
		Use:   "login [flags] [REGISTRY]",
		Short: "Store credentials for a registry, after trying them",
		Long: `Tries the credentials and stores them in auth.json, where Podman, Buildah and
Skopeo find them too. Without REGISTRY it is docker.io.`,
		Example: "  subpod login quay.io\n  echo \"$TOKEN\" | subpod login -u ci --password-stdin registry.example.com",
		Args:    between(0, 1),
		RunE: a.runStarting(func(cmd *cobra.Command, conn *connection, args []string) (err error) {
			if len(args) == 1 {
				req.Registry = args[0]
			}
			if err := askCredentials(req, fromStdin); err != nil {
				return err
			}
			file, err := conn.Login(cmd.Context(), req)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "logged in; the credentials are in %s\n", file)
			return nil
		}),
	}
	cmd.Flags().StringVarP(&req.Username, "username", "u", "", "user name (default: ask)")
	cmd.Flags().StringVarP(&req.Password, "password", "p", "", "password: better --password-stdin, others see your arguments")
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	return cmd
}

// askCredentials asks for what the flags do not tell.
func askCredentials(req *control.LoginRequest, fromStdin bool) error {
	if fromStdin {
		if req.Username == "" || req.Password != "" {
			return usagef("--password-stdin needs -u, and no -p")
		}
		text, err := io.ReadAll(io.LimitReader(os.Stdin, 64<<10))
		if err != nil {
			return fmt.Errorf("read the password: %w", err)
		}
		req.Password = strings.TrimRight(string(text), "\r\n")
		return nil
	}
	if req.Username != "" && req.Password != "" {
		return nil
	}
	if !isTerminal(os.Stdin) {
		return usagef("no terminal to ask for the password: use -u and --password-stdin")
	}
	in := bufio.NewReader(os.Stdin)
	if req.Username == "" {
		fmt.Fprint(os.Stderr, "Username: ")
		line, err := in.ReadString('\n')
		if err != nil {
			return errors.New("no user name was given")
		}
		req.Username = strings.TrimSpace(line)
	}
	if req.Password == "" {
		restore, err := noEcho(os.Stdin)
		if err != nil {
			return err
		}
		defer restore()
		fmt.Fprint(os.Stderr, "Password: ")
		line, err := in.ReadString('\n')
		fmt.Fprintln(os.Stderr)
		if err != nil {
			return errors.New("no password was given")
		}
		req.Password = strings.TrimRight(line, "\r\n")
	}
	return nil
}

func newLogout(a *app) *cobra.Command {
	req := &control.LogoutRequest{}
	cmd := &cobra.Command{
		Use:     "logout [flags] [REGISTRY]",
		Short:   "Remove stored credentials",
		Example: "  subpod logout quay.io\n  subpod logout --all",
		Args:    between(0, 1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if len(args) == 1 {
				req.Registry = args[0]
			}
			if req.All && req.Registry != "" {
				return usagef("--all and a registry")
			}
			return conn.Logout(cmd.Context(), req)
		}),
	}
	cmd.Flags().BoolVar(&req.All, "all", false, "those for all registries")
	return cmd
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/api"
)

func newLogin(a *app) *cobra.Command {
	req := &api.LoginRequest{}
	var fromStdin bool
	cmd := &cobra.Command{
		Use:   "login [flags] [REGISTRY]",
		Short: "Log in to a registry",
		Long: `Verifies the credentials and stores them in auth.json, which Podman, Buildah and
Skopeo use too. The default registry is docker.io.`,
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
			fmt.Fprintf(cmd.OutOrStdout(), "login succeeded; credentials stored in %s\n", file)
			return nil
		}),
	}
	cmd.Flags().StringVarP(&req.Username, "username", "u", "", "user name (default: prompt for it)")
	cmd.Flags().StringVarP(&req.Password, "password", "p", "", "password; --password-stdin is safer, because other users can see arguments")
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	return cmd
}

// askCredentials prompts for the credentials that the flags do not give.
func askCredentials(req *api.LoginRequest, fromStdin bool) error {
	if fromStdin {
		if req.Username == "" || req.Password != "" {
			return usagef("--password-stdin requires -u and excludes -p")
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
		return usagef("standard input is no terminal to prompt for the password at: use -u and --password-stdin")
	}
	in := bufio.NewReader(os.Stdin)
	if req.Username == "" {
		fmt.Fprint(os.Stderr, "Username: ")
		line, err := in.ReadString('\n')
		if err != nil {
			return errors.New("no user name given")
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
			return errors.New("no password given")
		}
		req.Password = strings.TrimRight(line, "\r\n")
	}
	return nil
}

func newLogout(a *app) *cobra.Command {
	req := &api.LogoutRequest{}
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
				return usagef("--all and REGISTRY exclude each other")
			}
			return conn.Logout(cmd.Context(), req)
		}),
	}
	cmd.Flags().BoolVarP(&req.All, "all", "a", false, "remove the credentials of all registries")
	return cmd
}

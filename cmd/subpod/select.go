package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// selection are the flags by which a command takes containers that are not named.
type selection struct {
	all              bool
	filters, idFiles []string
}

func (s *selection) addAll(f *pflag.FlagSet, usage string) {
	f.BoolVarP(&s.all, "all", "a", false, usage)
}

func (s *selection) addFilter(f *pflag.FlagSet, shorthand string) {
	f.StringArrayVarP(&s.filters, "filter", shorthand, nil, "all containers for which NAME=VALUE holds, as of \"ps\"")
}

func (s *selection) addIDFiles(f *pflag.FlagSet) {
	f.StringArrayVar(&s.idFiles, "cidfile", nil, "read an ID from this file; may be repeated")
}

// args wants names, or none with a flag that stands for some.
func (s *selection) args() cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case s.all && len(s.filters) > 0:
			return usagef("--all and --filter exclude each other")
		case s.all || len(s.filters) > 0:
			if len(args) > 0 || len(s.idFiles) > 0 {
				return usagef("--all and --filter take no names: got %q", append(args, s.idFiles...))
			}
			return nil
		case len(s.idFiles) > 0:
			return nil
		}
		return atLeast(1)(cmd, args)
	}
}

// refs returns what the arguments and the flags name; all returns what --all stands for.
func (s *selection) refs(ctx context.Context, c *client.Client, args []string, all func(context.Context, *client.Client) ([]string, error)) ([]string, error) {
	if s.all {
		return all(ctx, c)
	}
	if len(s.filters) > 0 {
		filter, err := parsePsFilters(s.filters)
		if err != nil {
			return nil, err
		}
		rows, err := containerRows(ctx, c, true)
		if err == nil {
			rows, err = filter.apply(rows)
		}
		for _, r := range rows {
			args = append(args, r.ID)
		}
		return args, err
	}
	for _, file := range s.idFiles {
		id, err := readIDFile("--cidfile", file)
		if err != nil {
			return nil, err
		}
		args = append(args, id)
	}
	return args, nil
}

// runningContainers returns the IDs of the containers that run.
func runningContainers(ctx context.Context, c *client.Client) ([]string, error) {
	return containersIn(runtimeapi.ContainerState_CONTAINER_RUNNING)(ctx, c)
}

// containersIn returns a function that lists the IDs of the containers in one of the states;
// in any without one.
func containersIn(states ...runtimeapi.ContainerState) func(context.Context, *client.Client) ([]string, error) {
	return func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Containers(ctx)
		var ids []string
		for _, x := range list {
			wanted := len(states) == 0
			for _, s := range states {
				wanted = wanted || x.State == s
			}
			if wanted {
				ids = append(ids, x.Id)
			}
		}
		return ids, err
	}
}

// withLatest gives a command the flag -l, which stands for its first argument: the
// container that was made last. Without further arguments that is its only one.
func (a *app) withLatest(cmd *cobra.Command, further bool) *cobra.Command {
	return withLatest(cmd, further, a.connect)
}

func withLatest(cmd *cobra.Command, further bool, connect func() (*connection, error)) *cobra.Command {
	var latest bool
	check, run := cmd.Args, cmd.RunE
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if !latest {
			return check(cmd, args)
		}
		if len(args) > 0 && !further {
			return usagef("--latest takes no names: got %q", args)
		}
		return check(cmd, append([]string{"--latest"}, args...))
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if latest {
			id, err := latestOf(cmd.Context(), connect)
			if err != nil {
				return err
			}
			args = append([]string{id}, args...)
		}
		return run(cmd, args)
	}
	cmd.Flags().BoolVarP(&latest, "latest", "l", false, "the container that was made last")
	return cmd
}

// latestOf returns the ID of the container that was made last. client.ErrNotFound.
func latestOf(ctx context.Context, connect func() (*connection, error)) (string, error) {
	conn, err := connect()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	list, err := conn.Containers(ctx)
	if err != nil {
		return "", err
	}
	id, created := "", int64(0)
	for _, x := range list {
		if x.CreatedAt >= created {
			id, created = x.Id, x.CreatedAt
		}
	}
	if id == "" {
		return "", fmt.Errorf("--latest: there is no container: %w", client.ErrNotFound)
	}
	return id, nil
}

// pods returns those of the pods that have a container for which the filters hold.
func (s *selection) pods(ctx context.Context, c *client.Client, ids []string) ([]string, error) {
	filter, err := parsePsFilters(s.filters)
	if err != nil {
		return nil, err
	}
	rows, err := containerRows(ctx, c, true)
	if err == nil {
		rows, err = filter.apply(rows)
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		return !slices.ContainsFunc(rows, func(r containerRow) bool { return r.PodID == id })
	}), err
}

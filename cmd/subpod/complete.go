package main

import (
	"path/filepath"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

func dirOf(file string) string { return filepath.Dir(file) }

// complete asks the daemon for the names that can complete a command line.
func (a *app) complete(cmd *cobra.Command, list func(*connection) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	conn, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer conn.Close()
	names, err := list(conn)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeContainers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, func(conn *connection) ([]string, error) {
		list, err := conn.Containers(cmd.Context())
		var names []string
		for _, x := range list {
			names = append(names, x.Name())
		}
		return names, err
	})
}

func (a *app) completePods(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, func(conn *connection) ([]string, error) {
		list, err := conn.Pods(cmd.Context())
		var names []string
		for _, p := range list {
			names = append(names, client.PodName(p))
		}
		return names, err
	})
}

func (a *app) completeBoth(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	names, _ := a.completeContainers(cmd, args, prefix)
	pods, d := a.completePods(cmd, args, prefix)
	return append(names, pods...), d
}

func (a *app) completeImages(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, func(conn *connection) ([]string, error) {
		list, err := conn.ListImages(cmd.Context(), &runtimeapi.ListImagesRequest{})
		var names []string
		for _, i := range list.GetImages() {
			names = append(names, i.RepoTags...)
		}
		return names, err
	})
}

package main

import (
	"path/filepath"
	"slices"
	"strings"

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
	return completable(names), cobra.ShellCompDirectiveNoFileComp
}

// completable leaves out names that a shell would take for more than a word once they are
// in a command line, or a terminal for more than text: clients of the CRI choose any.
func completable(names []string) []string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	return slices.DeleteFunc(names, func(name string) bool {
		return strings.Trim(name, letters+"-_.:/@") != "" || strings.HasPrefix(name, "-")
	})
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

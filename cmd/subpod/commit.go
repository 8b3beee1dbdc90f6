package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newDiff(a *app) *cobra.Command {
	var out *format
	cmd := &cobra.Command{
		Use:     "diff [flags] CONTAINER",
		Short:   "Show what a container has changed of its image",
		Long:    "Lists the paths that a container has added (A), changed (C) or deleted (D). Volumes are not part of it.",
		Example: "  subpod diff web",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			x, err := conn.Container(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			list, err := client.Changes(cmd.Context(), conn.Client, x.Id)
			if err != nil {
				return err
			}
			if out.value == "table" && out.goFormat == "" {
				for _, c := range list {
					fmt.Fprintln(cmd.OutOrStdout(), c.Kind, plain(c.Path))
				}
				return nil
			}
			return printList(cmd.OutOrStdout(), out, list, nil)
		}),
		ValidArgsFunction: a.completeContainers,
	}
	out = addFormat(cmd)
	out.addGoFormat(cmd, "")
	return a.withLatest(cmd, false)
}

func newCommit(a *app) *cobra.Command {
	req := &api.CommitRequest{}
	var changes []string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "commit [flags] CONTAINER IMAGE",
		Short: "Make an image of a container",
		Long: `Makes an image: that of the container, with one more layer of what the container has
changed. Volumes are not part of it. Stop the container first if it writes.`,
		Example: "  subpod commit -c 'CMD [\"/app\"]' web example.com/me/web:v2",
		Args:    exactly(2),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			for _, c := range changes {
				if err := imageChange(&req.Config, c); err != nil {
					return err
				}
			}
			x, err := conn.Container(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			req.ContainerID, req.Name = x.Id, args[1]
			id, err := client.Commit(cmd.Context(), conn.Client, req)
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), id)
			}
			return err
		}),
		ValidArgsFunction: a.completeContainers,
	}
	f := cmd.Flags()
	f.StringVarP(&req.Author, "author", "a", "", "author of the image")
	f.StringVarP(&req.Message, "message", "m", "", "comment in the image's history")
	f.StringArrayVarP(&changes, "change", "c", nil, "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, as a Dockerfile has it")
	f.BoolVarP(&quiet, "quiet", "q", false, "no effect: only the ID is printed")
	return cmd
}

// imageChange parses an instruction of a Dockerfile: "CMD /app", "ENV=A=b".
func imageChange(c *api.ImageChanges, text string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	if name, value, ok := strings.Cut(word, "="); ok {
		word, rest = name, strings.TrimSpace(value+" "+rest)
	}
	rest = strings.TrimSpace(rest)
	if rest == "" {
		return usagef("invalid --change %q: it has no value", text)
	}
	command := func() []string {
		var list []string
		if json.Unmarshal([]byte(rest), &list) == nil {
			return list
		}
		return []string{"/bin/sh", "-c", rest}
	}
	pair := func() string {
		if strings.Contains(rest, "=") {
			return strings.ReplaceAll(rest, `"`, "")
		}
		name, value, _ := strings.Cut(rest, " ")
		return name + "=" + strings.TrimSpace(value)
	}
	switch strings.ToUpper(word) {
	case "CMD":
		c.Cmd = command()
	case "ENTRYPOINT":
		c.Entrypoint = command()
	case "ENV":
		c.Env = append(c.Env, pair())
	case "EXPOSE":
		if !strings.Contains(rest, "/") {
			rest += "/tcp"
		}
		c.Ports = append(c.Ports, rest)
	case "LABEL":
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		name, value, _ := strings.Cut(pair(), "=")
		c.Labels[name] = value
	case "STOPSIGNAL":
		c.StopSignal = &rest
	case "USER":
		c.User = &rest
	case "VOLUME":
		c.Volumes = append(c.Volumes, rest)
	case "WORKDIR":
		c.WorkingDir = &rest
	default:
		return usagef("invalid --change %q: expected CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR", text)
	}
	return nil
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// imageRow is a row of the output of "images": one for each tag of an image.
type imageRow struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"` // fully qualified, with the tag; "" for an image without a tag
	Digests  []string  `json:"digests"`
	Size     uint64    `json:"size"`
	Created  time.Time `json:"created"`
	Platform string    `json:"platform"`
	Pinned   bool      `json:"pinned"`

	labels map[string]string
}

func newImages(a *app) *cobra.Command {
	var quiet, noTrunc, all, digests bool
	var filters []string
	var by string
	var out *format
	id := func(full string) string {
		if noTrunc {
			return full
		}
		return shortID(full)
	}
	cmd := &cobra.Command{
		Use:     "images [flags] [NAME]",
		Short:   "List images",
		Example: "  subpod images\n  subpod images -o 'go-template={{.name}} {{.size}}'",
		Args:    between(0, 1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			rows, err := imageRows(cmd.Context(), conn.Client, args)
			if err == nil {
				rows, err = filterImages(rows, filters)
			}
			if err == nil {
				err = sortImages(rows, by)
			}
			if err != nil {
				return err
			}
			if quiet {
				var ids []string
				for _, r := range rows {
					ids = append(ids, r.ID)
				}
				for _, full := range slices.Compact(ids) {
					fmt.Fprintln(cmd.OutOrStdout(), id(full))
				}
				return nil
			}
			columns := []column[imageRow]{
				{"IMAGE", func(r imageRow) string { return cmp.Or(r.Name, "<none>") }},
				{"IMAGE ID", func(r imageRow) string { return id(r.ID) }},
				{"CREATED", func(r imageRow) string { return ago(r.Created) }},
				{"SIZE", func(r imageRow) string { return bytesText(r.Size) }},
			}
			if digests {
				columns = slices.Insert(columns, 1, column[imageRow]{"DIGEST", imageRow.digest})
			}
			return printList(cmd.OutOrStdout(), out, rows, columns)
		}),
		ValidArgsFunction: a.completeImages,
	}
	out = addFormat(cmd)
	out.addGoFormat(cmd, "")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "IDs only")
	cmd.Flags().BoolVar(&digests, "digests", false, "show digests")
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "NAME=VALUE: before, dangling, id, label, reference, since, until")
	cmd.Flags().StringVar(&by, "sort", "name", "created, id, name, repository, size or tag")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "show whole IDs")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "accepted, without effect: all images are listed")
	cmd.Flags().BoolVarP(&out.noHeading, "noheading", "n", false, "leave out the line of titles")
	return cmd
}

// fields implements named, with Podman's names.
func (r imageRow) fields() map[string]any {
	repository, tag := r.repository()
	return map[string]any{
		"ID": shortID(r.ID), "Id": r.ID, "Repository": repository, "Tag": tag, "Digest": r.digest(), "Size": bytesText(r.Size),
		"CreatedSince": ago(r.Created), "CreatedAt": r.Created.Format("2006-01-02 15:04:05 -0700 MST"),
	}
}

func imageRows(ctx context.Context, c *client.Client, args []string) ([]imageRow, error) {
	req := &runtimeapi.ListImagesRequest{}
	if len(args) == 1 {
		req.Filter = &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: args[0]}}
	}
	list, err := c.ListImages(ctx, req)
	if err != nil {
		return nil, err
	}
	if len(args) == 1 && len(list.Images) == 0 {
		return nil, fmt.Errorf("image %q: %w", args[0], client.ErrNotFound)
	}
	var rows []imageRow
	for _, i := range list.Images {
		row := imageRow{ID: i.Id, Digests: slices.Concat([]string{}, i.RepoDigests), Size: i.Size, Pinned: i.Pinned}
		info, err := imageInfo(ctx, c, i.Id)
		if err != nil && !client.IsNotFound(err) {
			return nil, err
		}
		row.Created, row.labels = info.Created, info.Labels
		if info.OS != "" {
			row.Platform = info.OS + "/" + info.Architecture
		}
		if len(i.RepoTags) == 0 {
			rows = append(rows, row)
		}
		for _, tag := range i.RepoTags {
			row.Name = tag
			rows = append(rows, row)
		}
	}
	slices.SortStableFunc(rows, func(a, b imageRow) int { return strings.Compare(a.Name, b.Name) })
	return rows, nil
}

// verboseImage is the verbose status of an image.
type verboseImage struct {
	Digest       string            `json:"digest"`
	OS           string            `json:"os"`
	Architecture string            `json:"architecture"`
	Variant      string            `json:"variant"`
	Created      time.Time         `json:"created"`
	Labels       map[string]string `json:"labels"`
	ImageSpec    struct {
		Config json.RawMessage `json:"config"`
	} `json:"imageSpec"`
	History []imageStep `json:"history"`
	Layers  []string    `json:"layers"`
	Author  string      `json:"author"`
}

// imageStep is a step of what an image's configuration says of how it was made.
type imageStep struct {
	Created    time.Time `json:"created"`
	CreatedBy  string    `json:"created_by"`
	Author     string    `json:"author,omitempty"`
	Comment    string    `json:"comment,omitempty"`
	EmptyLayer bool      `json:"empty_layer,omitempty"`
}

func imageInfo(ctx context.Context, c *client.Client, ref string) (verboseImage, error) {
	var info verboseImage
	st, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})
	if err != nil {
		return info, err
	}
	if st.Image == nil {
		return info, fmt.Errorf("image %q: %w", ref, client.ErrNotFound)
	}
	err = decodeInfo(st.Info, "image "+ref, &info)
	return info, err
}

func newPull(a *app) *cobra.Command {
	var quiet bool
	var of platformFlags
	cmd := &cobra.Command{
		Use:   "pull [flags] IMAGE...",
		Short: "Pull images from a registry",
		Long: `Pulls images with the credentials in auth.json (see "subpod login"). The files
registries.conf, policy.json and certs.d are shared with Podman and Buildah. Of an image
for several platforms what fits this machine is pulled, or what --platform asks for: its
name stands for that one then.`,
		Example: "  subpod pull busybox\n  subpod pull quay.io/podman/hello:latest\n  subpod pull --platform linux/arm64 busybox",
		Args:    atLeast(1),
		RunE: a.runStarting(func(cmd *cobra.Command, conn *connection, args []string) error {
			platform, err := of.asked()
			if err != nil {
				return err
			}
			return each(args, func(ref string) error {
				return pull(cmd.Context(), conn.Client, &api.PullRequest{Ref: strings.TrimPrefix(ref, "docker://"), Platform: platform}, quiet)
			})
		}),
	}
	of.add(cmd.Flags())
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show progress")
	return cmd
}

func newPush(a *app) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "push [flags] IMAGE [DESTINATION]",
		Short: "Push an image to a registry",
		Long: `Copies an image to a registry, under its own name or another one, with the credentials
in auth.json (see "subpod login").`,
		Example: "  subpod push registry.example.com/me/app:v1\n  subpod push app:v1 registry.example.com/me/app:v1",
		Args:    between(1, 2),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			target := ""
			if len(args) == 2 {
				target = strings.TrimPrefix(args[1], "docker://")
			}
			name, err := conn.Push(cmd.Context(), args[0], target)
			if err == nil && !quiet {
				fmt.Fprintln(cmd.OutOrStdout(), plain(name))
			}
			return err
		}),
		ValidArgsFunction: a.completeImages,
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not print the name")
	return cmd
}

func newRmi(a *app) *cobra.Command {
	var force, all, ignore bool
	cmd := &cobra.Command{
		Use:   "rmi [flags] IMAGE...",
		Short: "Remove images",
		Long: `Removes a name from an image, and the image itself with its last name. Given an ID,
removes the image. An image that a container uses is refused; with --force the
containers are removed, too.`,
		Example: "  subpod rmi busybox:1.36\n  subpod rmi 9f2a3c",
		Args:    argsOrAll(&all),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if all {
				rows, err := imageRows(cmd.Context(), conn.Client, nil)
				if err != nil {
					return err
				}
				for _, r := range rows {
					args = append(args, cmp.Or(r.Name, r.ID))
				}
			}
			return each(args, func(ref string) error {
				done, err := conn.Untag(cmd.Context(), ref, force)
				if client.IsNotFound(err) && (force || ignore) {
					return nil
				}
				if err != nil && force {
					if err := removeUsers(cmd.Context(), conn, ref); err != nil {
						return err
					}
					done, err = conn.Untag(cmd.Context(), ref, force)
				}
				if err != nil {
					return err
				}
				for _, name := range done.Untagged {
					fmt.Fprintln(cmd.OutOrStdout(), "untagged:", plain(name))
				}
				if done.Deleted != "" {
					fmt.Fprintln(cmd.OutOrStdout(), "deleted:", done.Deleted)
				}
				return nil
			})
		}),
		ValidArgsFunction: a.completeImages,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also remove an image with several names, and the containers that use it; ignore images that do not exist")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all images")
	cmd.Flags().BoolVarP(&ignore, "ignore", "i", false, "ignore images that do not exist")
	return cmd
}

// removeUsers removes the containers that use an image, running or not.
func removeUsers(ctx context.Context, conn *connection, ref string) error {
	st, err := conn.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil || st.Image == nil {
		return err
	}
	list, err := conn.Containers(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, x := range list {
		if strings.TrimPrefix(x.ImageId, "sha256:") == strings.TrimPrefix(st.Image.Id, "sha256:") {
			errs = append(errs, remove(ctx, conn, x.Id, true))
		}
	}
	return errors.Join(errs...)
}

func newTag(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "tag IMAGE NAME...",
		Short:             "Add names to an image",
		Example:           "  subpod tag busybox registry.example.com/me/busybox:v1",
		Args:              atLeast(2),
		ValidArgsFunction: a.completeImages,
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			var errs []error
			for _, name := range args[1:] {
				errs = append(errs, conn.Tag(cmd.Context(), args[0], name))
			}
			return errors.Join(errs...)
		}),
	}
}

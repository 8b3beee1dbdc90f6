package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/rootless"
)

// nodeInfo is the part of the daemon's verbose status that describes its node.
type nodeInfo struct {
	Node struct {
		RunDir, Uplink   string
		View, ViewReason string
		Nested           bool
		UIDMap, GIDMap   []idRange
	} `json:"node"`
	Uplink struct {
		Reason, Limits string
	} `json:"uplink"`
	Storage struct {
		Driver, Reason, BackingFS, Root string
	} `json:"storage"`
	Cgroup struct {
		Version     int
		Delegated   bool
		Controllers []string
		Driver      string
		Reason      string
	} `json:"cgroup"`
}

type idRange struct{ Container, Host, Size uint32 }

// infoRow is the output of "info".
type infoRow struct {
	Version     string   `json:"version"`
	Server      string   `json:"serverVersion"`
	Socket      string   `json:"socket"`
	DataDir     string   `json:"dataDir"`
	Storage     string   `json:"storageDriver"`
	StorageWhy  string   `json:"storageReason"`
	BackingFS   string   `json:"backingFileSystem"`
	Uplink      string   `json:"uplink,omitempty"`
	UplinkWhy   string   `json:"uplinkReason,omitempty"`
	UplinkLimit string   `json:"uplinkLimits,omitempty"`
	View        string   `json:"view,omitempty"`
	ViewWhy     string   `json:"viewReason,omitempty"`
	Nested      bool     `json:"nested"`
	IDs         string   `json:"ids"`
	Limits      string   `json:"limits"`
	Controllers []string `json:"controllers,omitempty"`
	Handlers    []string `json:"runtimeHandlers"`
	Pods        int      `json:"pods"`
	Containers  int      `json:"containers"`
	Images      int      `json:"images"`
	Conditions  []string `json:"conditions"`
}

func readNode(ctx context.Context, c *client.Client) (nodeInfo, error) {
	var n nodeInfo
	st, err := c.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return n, err
	}
	for part, into := range map[string]any{"node": &n.Node, "uplink": &n.Uplink, "storage": &n.Storage, "cgroup": &n.Cgroup} {
		if text := st.Info[part]; text != "" {
			if err := json.Unmarshal([]byte(text), into); err != nil {
				return n, fmt.Errorf("decode the daemon's status (%s): %w", part, err)
			}
		}
	}
	return n, nil
}

// hostID returns the host ID that an ID of the node is mapped to.
func hostID(ranges []idRange, id uint32) string {
	for _, r := range ranges {
		if id >= r.Container && id-r.Container < r.Size {
			return fmt.Sprint(r.Host + (id - r.Container))
		}
	}
	return "none"
}

// explainMap describes an ID map.
func explainMap(ranges []idRange) string {
	var parts []string
	for _, r := range ranges {
		if r.Size == 1 {
			parts = append(parts, fmt.Sprintf("%d is %d on the host", r.Container, r.Host))
			continue
		}
		parts = append(parts, fmt.Sprintf("%d-%d are %d-%d", r.Container, r.Container+r.Size-1, r.Host, r.Host+r.Size-1))
	}
	return strings.Join(parts, ", ")
}

func newInfo(a *app) *cobra.Command {
	var out *format
	cmd := &cobra.Command{
		Use:     "info [flags]",
		Short:   "Show the configuration of the daemon and the reasons for it",
		Example: "  subpod info\n  subpod info -o 'go-template={{.storageDriver}}'",
		Args:    exactly(0),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			row, err := readInfo(cmd.Context(), conn)
			if err != nil {
				return err
			}
			if out.value != "table" || out.goFormat != "" {
				if out.value == "json" {
					return printJSON(cmd.OutOrStdout(), row)
				}
				if out.value == "yaml" {
					return printYAML(cmd.OutOrStdout(), row)
				}
				return printList(cmd.OutOrStdout(), out, []infoRow{row}, nil)
			}
			w := cmd.OutOrStdout()
			for _, line := range []struct{ name, value string }{
				{"version", row.Version + ", server " + row.Server},
				{"socket", row.Socket},
				{"data", row.DataDir},
				{"storage", fmt.Sprintf("%s (%s) on %s", row.Storage, row.StorageWhy, row.BackingFS)},
				{"IDs", row.IDs},
				{"uplink", row.uplink()},
				{"view", row.view()},
				{"limits", row.Limits},
				{"handlers", strings.Join(row.Handlers, ", ")},
				{"objects", fmt.Sprintf("%d pods, %d containers, %d images", row.Pods, row.Containers, row.Images)},
				{"conditions", strings.Join(row.Conditions, "; ")},
			} {
				fmt.Fprintf(w, "%-12s%s\n", line.name, line.value)
			}
			return nil
		}),
	}
	out = addFormat(cmd)
	out.addGoFormat(cmd, "f")
	return cmd
}

// uplink describes the uplink in one line.
func (r infoRow) uplink() string {
	s := r.Uplink
	if r.UplinkWhy != "" {
		s += " (" + r.UplinkWhy + ")"
	}
	if r.UplinkLimit != "" {
		s += ": " + r.UplinkLimit
	}
	return s
}

// view describes what the node shows of the host.
func (r infoRow) view() string {
	s := cmp.Or(r.View, rootless.ViewFull) // a node of an earlier version says nothing
	if r.ViewWhy != "" {
		s += ": " + r.ViewWhy
	}
	return s
}

func readInfo(ctx context.Context, conn *connection) (infoRow, error) {
	row := infoRow{Version: buildVersion(), Socket: conn.config.Daemon.Socket, DataDir: conn.config.Daemon.DataDir}
	node, err := readNode(ctx, conn.Client)
	if err != nil {
		return row, err
	}
	row.Storage, row.StorageWhy, row.BackingFS = node.Storage.Driver, node.Storage.Reason, node.Storage.BackingFS
	row.Uplink, row.Nested, row.IDs = uplinkName(node), node.Node.Nested, explainMap(node.Node.UIDMap)
	row.View, row.ViewWhy = node.Node.View, node.Node.ViewReason
	row.UplinkWhy, row.UplinkLimit = node.Uplink.Reason, node.Uplink.Limits
	row.Limits, row.Controllers = "none: "+node.Cgroup.Reason, node.Cgroup.Controllers
	if node.Cgroup.Delegated {
		row.Limits = fmt.Sprintf("cgroup v%d, %s driver: %s", node.Cgroup.Version, node.Cgroup.Driver, strings.Join(node.Cgroup.Controllers, " "))
	}
	version, err := conn.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return row, err
	}
	row.Server = version.RuntimeVersion
	st, err := conn.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return row, err
	}
	for _, h := range st.RuntimeHandlers {
		if h.Name != "" {
			row.Handlers = append(row.Handlers, h.Name)
		}
	}
	slices.Sort(row.Handlers)
	for _, c := range st.Status.Conditions {
		text := c.Type
		if !c.Status {
			text = "not " + c.Type + " (" + c.Message + ")"
		} else if c.Message != "" {
			text += " (" + c.Message + ")"
		}
		row.Conditions = append(row.Conditions, text)
	}
	pods, err := conn.Pods(ctx)
	if err != nil {
		return row, err
	}
	containers, err := conn.Containers(ctx)
	if err != nil {
		return row, err
	}
	images, err := conn.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return row, err
	}
	row.Pods, row.Containers, row.Images = len(pods), len(containers), len(images.Images)
	return row, nil
}

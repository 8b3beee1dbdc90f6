package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/monitor/wire"
	stateformat "github.com/subpod/subpod/pkg/state/format"
)

// version is set by the build: -ldflags "-X main.version=…".
var version string

// versionJSON is what "version --json" prints. The packages' scripts read the formats.
type versionJSON struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	// Formats that this program reads and writes: of the state on disk, and between the
	// server and the monitor.
	State   int `json:"state"`
	Monitor int `json:"monitor"`
}

func newVersion() *cobra.Command {
	var asJSON bool
	out := &format{}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionJSON{buildVersion(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, stateformat.Version, wire.Version}
			if out.goFormat != "" && out.goFormat != "json" {
				return printList(cmd.OutOrStdout(), out, []versionJSON{v}, nil)
			}
			if asJSON || out.goFormat == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "subpod %s %s %s\n", v.Version, v.Go, v.Platform)
			return err
		},
	}
	out.addGoFormat(cmd, "f")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: version, go, platform, and the versions of the state on disk and of the monitor's protocol")
	return cmd
}

// fields implements named, with the names of Podman and Docker.
func (v versionJSON) fields() map[string]any {
	own := map[string]any{"Version": v.Version, "GoVersion": v.Go, "OsArch": v.Platform, "Os": runtime.GOOS, "Arch": runtime.GOARCH}
	return map[string]any{"Client": own}
}

func buildVersion() string { return cli.Version(version) }

// checkState refuses what this program's server could not read, before anything is
// changed. stateformat.ErrTooNew.
func checkState(cfg *config.Config) error {
	return stateformat.Check(filepath.Join(cfg.Daemon.DataDir, "state.db"))
}

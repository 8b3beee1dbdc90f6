package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/cmd/internal/doctor"
	"github.com/subpod/subpod/configs"
	"github.com/subpod/subpod/pkg/config"
)

func newDoctor(flags *cli.Flags) *cobra.Command {
	var asJSON, quiet, profile bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host for missing requirements, and print how to fix them",
		Long: `Checks the kernel, the user's IDs, devices, programs, cgroups, the session and the
disk, and prints what will not work together with the commands that fix it. It
needs no daemon and changes nothing.

Exit codes: 0 if the daemon can start and containers can run (there may be
warnings), 1 if not.`,
		Example: "  subpod doctor\n  subpod doctor --json | jq '.checks[] | select(.level != \"ok\")'",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if profile {
				return printProfile(cmd.OutOrStdout())
			}
			// Load sets it if it is missing.
			runtimeDir := os.Getenv("XDG_RUNTIME_DIR")
			cfg, problem := flags.Load()
			if problem != nil {
				served, err := servedConfig(flags)
				if err != nil {
					return problem
				}
				cfg = served
			}
			server, err := serverPath()
			if err != nil {
				return err
			}
			results := checksOf(cfg, doctor.ThisHost(cfg, func(name string) string {
				if name == "XDG_RUNTIME_DIR" {
					return runtimeDir
				}
				return os.Getenv(name)
			}, server))
			if problem != nil {
				results = append([]doctor.Result{{Check: "configuration", Level: doctor.Error, What: problem.Error(),
					Fix: "mend the file, then: subpod reload"}}, results...)
			}
			return showChecks(cmd.OutOrStdout(), results, asJSON, quiet)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: {\"level\", \"checks\": [{\"check\", \"level\", \"what\", \"fix\"}]}")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print problems only")
	cmd.Flags().BoolVar(&profile, "apparmor-profile", false, "print the AppArmor profile for this program and exit")
	return cmd
}

// checksOf checks the host, and whether this version reads the state that is there.
func checksOf(cfg *config.Config, host doctor.Host) []doctor.Result {
	results := doctor.Run(host)
	if err := checkState(cfg); err != nil {
		results = append(results, doctor.Result{Check: "state", Level: doctor.Error, What: err.Error()})
	}
	return results
}

// showChecks prints results, and returns exit status 1 where one of them is an error.
func showChecks(w io.Writer, results []doctor.Result, asJSON, quiet bool) error {
	show := func() error { return doctorText(w, results, quiet) }
	if asJSON {
		show = func() error { return doctorJSON(w, results) }
	}
	if err := show(); err != nil {
		return err
	}
	if doctor.Worst(results) == doctor.Error {
		return exitStatus(1)
	}
	return nil
}

func doctorJSON(w io.Writer, results []doctor.Result) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(struct {
		Level  doctor.Level    `json:"level"`
		Checks []doctor.Result `json:"checks"`
	}{doctor.Worst(results), results})
}

func doctorText(w io.Writer, results []doctor.Result, quiet bool) error {
	var out strings.Builder
	count := map[doctor.Level]int{}
	for _, r := range results {
		count[r.Level]++
		if quiet && r.Level == doctor.OK {
			continue
		}
		fmt.Fprintf(&out, "%-8s %-16s %s\n", r.Level, r.Check, r.What)
		for line := range strings.Lines(r.Fix) {
			fmt.Fprintf(&out, "%-25s     %s\n", "", strings.TrimRight(line, "\n"))
		}
	}
	fmt.Fprintf(&out, "%d errors, %d warnings\n", count[doctor.Error], count[doctor.Warning])
	_, err := io.WriteString(w, out.String())
	return err
}

func printProfile(w io.Writer) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	text, err := configs.AppArmorProfile(filepath.Clean(exe))
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, text)
	return err
}

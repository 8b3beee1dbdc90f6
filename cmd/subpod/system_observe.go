package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/client"
)

func newSystemLogLevel(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "log-level [debug|info|warn|error]",
		Short: "Show or change how much the server logs",
		Long: `Without an argument, shows the level of the server's log. A level that is set holds until
another server starts, also after "subpod reload": daemon.log_level is that of all others.`,
		Example:           "  subpod system log-level debug",
		Args:              between(0, 1),
		ValidArgsFunction: cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			level := ""
			if len(args) > 0 {
				level = args[0]
			}
			level, err := client.LogLevel(cmd.Context(), conn.Client, level)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), plain(level))
			return err
		}),
	}
}

// metricsTimeout bounds "system metrics".
const metricsTimeout = 15 * time.Second

func newSystemMetrics(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print the server's metrics as Prometheus reads them",
		Long: `Prints what the endpoint of [metrics] in the configuration serves, also to a file for those
who collect from files (node_exporter's textfile collector).`,
		Example: "  subpod system metrics | grep subpod_pods",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.flags.Load()
			if err != nil {
				return err
			}
			network, address := "tcp", cfg.Metrics.Listen
			switch address {
			case "off":
				return errors.New("metrics are off: set listen = \"unix\" in [metrics] of subpod.toml, then: subpod reload")
			case "unix":
				network, address = "unix", filepath.Join(cfg.Daemon.RunDir, "metrics.sock")
			}
			return printMetrics(cmd.Context(), cmd.OutOrStdout(), network, address)
		},
	}
}

// printMetrics asks by hand: the client of net/http would make each command of this program
// half a megabyte bigger.
func printMetrics(ctx context.Context, out io.Writer, network, address string) error {
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return fmt.Errorf("ask for metrics: %w (does the daemon run, and has it read [metrics]: subpod reload?)", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n"); err != nil {
		return fmt.Errorf("ask for metrics: %w", err)
	}
	if err := copyMetrics(out, conn); err != nil {
		return fmt.Errorf("ask for metrics at %s: %w", address, err)
	}
	return nil
}

// plainLabel replaces what would control the terminal as the server does in names: the text
// format of Prometheus has no escape sequences for it, and one that it does not know costs
// the reader the whole text.
func plainLabel(r rune) rune {
	if unsafeRune(r, "\t") {
		return utf8.RuneError
	}
	return r
}

// maxMetricsLine bounds a line of the answer, in bytes.
const maxMetricsLine = 1 << 20

// copyMetrics prints an answer of HTTP. On a loopback address another user may give it.
func copyMetrics(out io.Writer, from io.Reader) error {
	answer := bufio.NewScanner(from)
	answer.Buffer(nil, maxMetricsLine)
	head := true
	for first := true; answer.Scan(); first = false {
		line := answer.Text()
		switch {
		case first && !strings.HasSuffix(line, " 200 OK"):
			return errors.New(plain(line))
		case head:
			head = line != ""
			continue
		}
		if _, err := fmt.Fprintln(out, strings.Map(plainLabel, line)); err != nil {
			return err
		}
	}
	if err := answer.Err(); err != nil || !head {
		return err
	}
	return io.ErrUnexpectedEOF
}

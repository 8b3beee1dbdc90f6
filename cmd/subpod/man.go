package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newMan writes the manual pages, from the same source as --help.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIRECTORY",
		Short:   "Write the manual pages into a directory",
		Example: "  subpod man ~/.local/share/man/man1",
		Hidden:  true,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("make the directory: %w", err)
			}
			return writePages(cmd.Root(), args[0])
		},
	}
}

// writePages writes the manual pages of a command and its subcommands.
func writePages(cmd *cobra.Command, dir string) error {
	cmd.InitDefaultHelpCmd()
	cmd.InitDefaultHelpFlag()
	if err := os.WriteFile(filepath.Join(dir, pageName(cmd)+".1"), []byte(page(cmd)), 0o644); err != nil {
		return fmt.Errorf("write a manual page: %w", err)
	}
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() || c.IsAdditionalHelpTopicCommand() {
			continue
		}
		if err := writePages(c, dir); err != nil {
			return err
		}
	}
	return nil
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// page returns the manual page of a command (man(7)).
func page(cmd *cobra.Command) string {
	var b strings.Builder
	printf := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	printf(`.TH "%s" "1" "" "subpod %s" "User commands"`, strings.ToUpper(pageName(cmd)), roff(buildVersion()))
	printf(".SH NAME\n%s \\- %s", roff(pageName(cmd)), roff(cmd.Short))
	printf(".SH SYNOPSIS\n\\fB%s\\fP", roff(cmd.UseLine()))
	printf(".SH DESCRIPTION\n%s", text(cmd))
	for _, set := range []struct {
		title string
		flags *pflag.FlagSet
	}{{"OPTIONS", cmd.NonInheritedFlags()}, {"OPTIONS OF ALL COMMANDS", cmd.InheritedFlags()}} {
		if set.flags.HasAvailableFlags() {
			printf(".SH %s\n.nf\n%s.fi", set.title, roff(set.flags.FlagUsages()))
		}
	}
	if cmd.Example != "" {
		printf(".SH EXAMPLE\n.nf\n%s\n.fi", roff(cmd.Example))
	}
	var also []string
	if cmd.HasParent() {
		also = append(also, pageName(cmd.Parent()))
	}
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			also = append(also, pageName(c))
		}
	}
	for i, name := range also {
		also[i] = `\fB` + roff(name) + `\fP(1)`
	}
	if len(also) > 0 {
		printf(".SH SEE ALSO\n%s", strings.Join(also, ", "))
	}
	return b.String()
}

// text returns the description of a command in paragraphs; indented lines are kept
// as they are.
func text(cmd *cobra.Command) string {
	long := cmd.Long
	if long == "" {
		long = cmd.Short
	}
	var out []string
	for paragraph := range strings.SplitSeq(roff(long), "\n\n") {
		if strings.HasPrefix(paragraph, " ") {
			paragraph = ".nf\n" + paragraph + "\n.fi"
		}
		out = append(out, paragraph)
	}
	return strings.Join(out, "\n.PP\n")
}

// roff escapes characters that are special to troff.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// everyday are the commands that the help of subpod itself describes; of others it has
// the names. The manual pages and "subpod COMMAND --help" have all of them.
var everyday = []string{"run", "play", "ps", "logs", "exec", "stop", "rm", "inspect", "pull", "images", "volume", "secret", "daemon", "setup", "doctor", "info"}

// helpWidth is the number of columns of the lines of names.
const helpWidth = 78

// setHelp gives the root command a help of one screen, and leaves those of the others.
func setHelp(root *cobra.Command) {
	inherited := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if cmd != root {
			inherited(cmd, args)
			return
		}
		printHelp(cmd.OutOrStdout(), root)
	})
}

func printHelp(w io.Writer, root *cobra.Command) {
	intro, codes, _ := strings.Cut(root.Long, "\n\n")
	fmt.Fprintf(w, "%s\n\nUsage: %s COMMAND [flags]\n\nExamples:\n%s\n", intro, root.Name(), root.Example)
	for _, g := range root.Groups() {
		fmt.Fprintf(w, "\n%s\n", g.Title)
		var others []string
		for _, c := range root.Commands() {
			switch {
			case c.GroupID != g.ID || c.Hidden:
			case slices.Contains(everyday, c.Name()):
				fmt.Fprintf(w, "  %-9s %s\n", c.Name(), c.Short)
			default:
				others = append(others, c.Name())
			}
		}
		printNames(w, "also", others)
	}
	var nouns, flags []string
	for _, c := range root.Commands() {
		if c.Hidden && c.HasSubCommands() {
			nouns = append(nouns, c.Name())
		}
	}
	root.InitDefaultHelpFlag()
	root.InitDefaultVersionFlag()
	root.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, "--"+f.Name) })
	fmt.Fprintln(w)
	printNames(w, "nouns, as with Podman and Docker", nouns)
	printNames(w, "flags", flags)
	fmt.Fprintf(w, "\n%s\n\n\"%s COMMAND --help\" explains a command; \"%s man DIRECTORY\" writes the manual pages.\n", codes, root.Name(), root.Name())
}

// printNames prints names after a title, in lines.
func printNames(w io.Writer, title string, names []string) {
	if len(names) == 0 {
		return
	}
	line := "  " + title + ":"
	for _, name := range names {
		if len(line)+1+len(name) > helpWidth {
			fmt.Fprintln(w, line)
			line = "   "
		}
		line += " " + name
	}
	fmt.Fprintln(w, line)
}

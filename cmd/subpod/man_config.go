package main

import (
	"fmt"
	"strings"

	"github.com/subpod/subpod/configs"
)

// configPage returns the manual page subpod.toml(5), from the default configuration: its
// comments are the text.
func configPage() string {
	var b strings.Builder
	printf := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	printf(`.TH "SUBPOD.TOML" "5" "" "subpod %s" "File formats"`, roff(buildVersion()))
	printf(".SH NAME\nsubpod.toml \\- configuration of subpod\n.SH DESCRIPTION")
	var comment []string
	section := false
	flush := func() {
		printf("%s", prose(comment))
		comment = nil
	}
	for line := range strings.Lines(configs.Default) {
		line = strings.TrimSpace(line)
		text, isComment := strings.CutPrefix(line, "#")
		switch {
		case isComment:
			comment = append(comment, strings.TrimPrefix(text, " "))
		case line == "":
			if len(comment) > 0 && !section {
				flush()
			}
		case strings.HasPrefix(line, "["):
			if !section {
				printf(".SH SETTINGS\nEach with the value that holds when no file sets it.")
			}
			section = true
			printf(".SS %s", roff(line))
			flush()
		default:
			printf(".TP\n\\fB%s\\fP", roff(line))
			flush()
		}
	}
	printf(".SH FILES\n.TP\n%s\nThe user's.\n.TP\n%s\nAll users'.\n.TP\n%s\nRead after the file beside which the directory is.",
		roff("~/.config/subpod/subpod.toml"), roff("/etc/subpod/subpod.toml"), roff("subpod.toml.d/*.toml"))
	printf(".SH SEE ALSO\n\\fBsubpod\\fP(1), \\fBsubpod\\-doctor\\fP(1), \\fBsubpod\\-reload\\fP(1)")
	return b.String()
}

// prose returns the lines of a comment as text; an empty one begins a paragraph.
func prose(lines []string) string {
	var out []string
	for _, line := range lines {
		if line == "" {
			line = ".PP"
		} else {
			line = roff(line)
		}
		out = append(out, line)
	}
	return strings.TrimSpace(strings.Join(out, "\n"))
}

package main

import (
	"fmt"
	"strings"

	"github.com/subpod/subpod/rootless"
)

// helperPrograms are the programs that subpod starts, which nobody types.
var helperPrograms = []struct{ name, what, text string }{
	{serverBinary, "CRI server of subpod", "Serves the Container Runtime Interface inside the node. \"subpod daemon\" starts it there, and again when it ends."},
	{rootless.NodeBinary, "keeper of subpod's node", "Makes the node (user, mount, PID and network namespaces) and keeps it, as \"subpod daemon\" executes it."},
	{rootless.GvisorBinary, "keeper of subpod's node with a network of its own", "Is what subpod-node is, with the uplink \"gvisor-tap-vsock\" built in."},
	{"subpod-monitor", "container monitor of subpod", "Keeps the logs, terminals and exit codes of containers, where runtime.monitor is \"subpod\". The node starts it."},
}

// programPage returns the manual page of a program that subpod starts.
func programPage(name, what, text string) string {
	return fmt.Sprintf(`.TH "%s" "1" "" "subpod %s" "User commands"
.SH NAME
%s \- %s
.SH DESCRIPTION
%s
.PP
It is looked for beside \fBsubpod\fP, and is not called by hand.
.SH SEE ALSO
\fBsubpod\fP(1), \fBsubpod\-daemon\fP(1), \fBsubpod.toml\fP(5)
`, strings.ToUpper(roff(name)), roff(buildVersion()), roff(name), roff(what), roff(text))
}

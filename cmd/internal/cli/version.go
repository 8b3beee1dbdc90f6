package cli

import "runtime/debug"

// Version is the version that the build has set in package main (built), else
// what the Go tool knows.
func Version(built string) string {
	if built != "" {
		return built
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

package cli

import "runtime/debug"

// Version returns built, the version that the build has set in package main, or the
// version that the Go tool has recorded if that is empty.
func Version(built string) string {
	if built != "" {
		return built
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

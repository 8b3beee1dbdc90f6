package cli

import (
	"runtime/debug"
	"strings"
)

// unversioned is the version of a program that was built without "make" and without a
// module version. It is semantic, as the CRI wants, and older than every release.
const unversioned = "0.0.0-devel"

// Version returns the semantic version of the program: the one that the build has
// set in package main (built), else that of its module ("go install …@v0.2.0").
func Version(built string) string {
	if built != "" {
		return built
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unversioned
	}
	if version, ok := strings.CutPrefix(info.Main.Version, "v"); ok {
		return version
	}
	return unversioned
}

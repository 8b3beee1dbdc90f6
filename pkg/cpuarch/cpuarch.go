// Package cpuarch knows the names of processor architectures.
package cpuarch

import "strings"

// others are the names that uname(1), Debian and some builders of images have for an
// architecture, and the one of Go and the OCI image specification.
var others = map[string]string{
	"x86_64": "amd64", "x86-64": "amd64",
	"i386": "386", "i486": "386", "i586": "386", "i686": "386", "x86": "386",
	"aarch64": "arm64",
	"armhf":   "arm", "armel": "arm", "armv7l": "arm",
	"ppc64el": "ppc64le",
}

// Name returns the name that Go and the image specification have for an
// architecture, whatever its case; one that is not known as it is, in lower case.
func Name(name string) string {
	name = strings.ToLower(name)
	if usual, ok := others[name]; ok {
		return usual
	}
	return name
}

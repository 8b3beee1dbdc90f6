package api

import "strings"

// SplitSource takes LoadRequest.Source apart: the transport, "" where none is named,
// the path, and the reference behind it, "" where none is given.
func SplitSource(source string) (transport, path, ref string) {
	for _, t := range []string{"oci", "oci-archive", "docker-archive"} {
		if rest, ok := strings.CutPrefix(source, t+":"); ok {
			path, ref, _ = strings.Cut(rest, ":")
			return t, path, ref
		}
	}
	return "", source, ""
}

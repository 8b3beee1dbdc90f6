package doctor

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/subpod/subpod/rootless"
)

// advisory is a published hole of a program that subpod runs.
type advisory struct {
	program string
	cve     string
	// fixed are the first versions without it, one for each line of releases, in order.
	// A version is mended when it is not older than that of its own line (the first two
	// numbers), or newer than all of them.
	fixed []string
	what  string
}

// advisories are the known holes by which content or a container could reach the
// user, as the programs' own advisories and release notes have them (November 2026):
// https://github.com/opencontainers/runc/security/advisories,
// https://github.com/containers/crun/releases, the CVE records. None is known of
// conmon, passt and fuse-overlayfs.
func advisories() []advisory {
	return []advisory{
		{"runc", "CVE-2024-21626", []string{"1.1.12"}, "a container gets a directory of the host as its working directory"},
		{"runc", "CVE-2025-31133", []string{"1.2.8", "1.3.3", "1.4.0"}, "an image redirects the mounts that mask paths"},
		{"runc", "CVE-2025-52565", []string{"1.2.8", "1.3.3", "1.4.0"}, "an image redirects the mount of /dev/console"},
		{"runc", "CVE-2025-52881", []string{"1.2.8", "1.3.3", "1.4.0"}, "an image redirects writes to /proc"},
		{"runc", "CVE-2026-41579", []string{"1.3.6", "1.4.3", "1.5.0"}, "an image whose /dev is a link has links made outside of it"},
		{"crun", "CVE-2026-30892", []string{"1.27"}, "an exec as user 1 runs as root of the container"},
		{"crun", "CVE-2026-47766", []string{"1.28"}, "an image whose /dev is a link has files made outside of it"},
		{"crun", "CVE-2026-88264", []string{"1.30"}, "an image with a link at /dev/console has a file made outside of it, where a request puts a mount of its own on /dev"},
		{"crun", "CVE-2026-88265", []string{"1.30"}, "an image with a link at /dev/null gets a mounted file of the host to write, where a request puts a mount of its own on /dev"},
		{"libslirp", "CVE-2021-3592", []string{"4.6.0"}, "a pod reads memory of slirp4netns"},
		{"libslirp", "CVE-2021-3595", []string{"4.6.0"}, "a pod reads memory of slirp4netns"},
	}
}

// known returns a result for the holes that the program has by its version, unless the
// changelog of its package names them as mended.
func (h Host) known(p program, path string) []Result {
	name := p.name
	if name == "slirp4netns" {
		name = "libslirp" // the part of it that reads packets; it prints both versions
	}
	var open []advisory
	for _, a := range advisories() {
		if a.program == name {
			open = append(open, a)
		}
	}
	if len(open) == 0 {
		return nil
	}
	printed, current := parseVersion(versionLine(path, name))
	if current == nil {
		return nil
	}
	open = slices.DeleteFunc(open, func(a advisory) bool { return !a.has(current) })
	if len(open) == 0 {
		return nil
	}
	mended, pkg := h.changelog(p.pkg, path)
	var list []string
	var newest []int
	for _, a := range open {
		if !bytes.Contains(mended, []byte(a.cve)) {
			list = append(list, a.cve+" ("+a.what+")")
			if _, last := parseVersion(a.fixed[len(a.fixed)-1]); compare(last, newest) > 0 {
				newest = last
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	r := Result{Check: p.name, Level: Warning}
	if p.level < Warning {
		r.Level = Info // it is not used by this configuration
	}
	unless := "unless your distribution has mended them without a new version"
	if pkg != "" {
		unless = "and the changelog of the package " + pkg + " does not name them as mended"
	}
	r.What = fmt.Sprintf("%s %s has known holes, %s: %s", name, printed, unless, strings.Join(list, "; "))
	r.Fix = fmt.Sprintf("sudo apt install --only-upgrade %s    # package name in Debian\n# mended upstream in %s %s; the path of another one is set in subpod.toml", p.pkg, name, join(newest))
	return []Result{r}
}

// UplinkFault says which known holes the program of an uplink has, "" for none: content of
// pods reaches it.
func (h Host) UplinkFault(uplink string) string {
	var p program
	switch uplink {
	case rootless.UplinkSlirp:
		p = program{uplink, h.Config.Node.Slirp4netnsPath, "slirp4netns", Warning, ""}
	case rootless.UplinkPasta:
		p = program{uplink, h.Config.Node.PastaPath, "passt", Warning, ""}
	default:
		return ""
	}
	path, err := h.LookPath(p.path)
	if err != nil {
		return ""
	}
	for _, r := range h.known(p, path) {
		return r.What
	}
	return ""
}

// has reports whether the version has the hole.
func (a advisory) has(version []int) bool {
	for i, text := range a.fixed {
		_, fixed := parseVersion(text)
		line := fixed[:min(2, len(fixed))]
		if i < len(a.fixed)-1 && compare(version[:min(2, len(version))], line) > 0 {
			continue // of a later line of releases
		}
		return compare(version, fixed) < 0
	}
	return false
}

// versionLine returns the text after the name in the line that begins with it, of what
// the program prints as its version.
func versionLine(path, name string) string {
	for line := range strings.Lines(printed(path, "--version")) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), name); ok {
			return rest
		}
	}
	return ""
}

// parseVersion returns the first version in the text; nil without one. A release
// candidate is older than its release.
func parseVersion(text string) (printed string, version []int) {
	found := regexp.MustCompile(`(\d+(?:\.\d+)+)([-~]rc\S*)?`).FindStringSubmatch(text)
	if found == nil {
		return "", nil
	}
	for part := range strings.SplitSeq(found[1], ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return "", nil
		}
		version = append(version, n)
	}
	if found[2] != "" {
		version = append(version, -1)
	}
	return found[0], version
}

func join(version []int) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(version), "[]"), " ", ".")
}

// compare compares versions; missing numbers are 0.
func compare(a, b []int) int {
	for i := range max(len(a), len(b)) {
		var x, y int
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return x - y
		}
	}
	return 0
}

// maxChangelog bounds what is read of a package's changelog.
const maxChangelog = 4 << 20

// changelog returns the changelog of the package that the program is of, and the
// package with its version; "" when no package manager knows the file, or there is no
// changelog.
func (h Host) changelog(pkg, path string) (text []byte, name string) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	onHost, err := filepath.Rel(h.File("/"), path)
	if pkg == "" || err != nil {
		return nil, ""
	}
	if list, err := os.ReadFile(h.File("/var/lib/dpkg/info/" + pkg + ".list")); err == nil {
		if !bytes.Contains(list, []byte("/"+onHost+"\n")) {
			return nil, "" // not the package's file
		}
		if text = gunzip(h.File("/usr/share/doc/" + pkg + "/changelog.Debian.gz")); text == nil {
			return nil, ""
		}
		first, _, _ := strings.Cut(string(text), ")")
		return text, strings.Replace(first, " (", " ", 1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	rpm, err := h.LookPath("rpm")
	if err != nil {
		return nil, ""
	}
	cmd := exec.CommandContext(ctx, rpm, "-qf", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE}\n", "--changelog", path)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, ""
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return out, first
}

func gunzip(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(z, maxChangelog))
	if err != nil {
		return nil
	}
	return text
}

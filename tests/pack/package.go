package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // registers itself
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // registers itself
)

const (
	homepage   = "https://github.com/subpod/subpod"
	maintainer = "The subpod authors <subpod@users.noreply.github.com>"
	summary    = "rootless container runtime with a CRI endpoint"
	about      = summary + `
Runs containers and Kubernetes pods as an ordinary user: a daemon of the
user's own serves the Container Runtime Interface on a unix socket, and the
command subpod runs containers on it. "subpod setup" makes it ready for a user.`
)

// needs are the packages that the default configuration needs, and those that it uses
// when they are there.
var needs = map[string]struct{ depends, recommends, suggests []string }{
	"deb": {
		[]string{"conmon", "crun", "fuse-overlayfs", "iproute2", "mount", "nftables", "slirp4netns", "uidmap"},
		[]string{"ca-certificates", "dbus-user-session", "libpam-systemd"},
		[]string{"apparmor", "passt", "runc"},
	},
	"rpm": {
		[]string{"conmon", "crun", "fuse-overlayfs", "iproute", "nftables", "slirp4netns", "/usr/bin/newuidmap", "util-linux"},
		[]string{"ca-certificates"},
		[]string{"passt", "runc"},
	},
}

// moved are directories of the tree that a kind of package has elsewhere.
var moved = map[string]map[string]string{
	"deb": {"/usr/share/zsh/site-functions/": "/usr/share/zsh/vendor-completions/"},
	"rpm": {},
}

func makePackage(format string) func(job) error {
	return func(j job) error {
		info, clean, err := j.info(format)
		if err != nil {
			return err
		}
		defer clean()
		packager, err := nfpm.Get(format)
		if err != nil {
			return err
		}
		info = nfpm.WithDefaults(info)
		if err := nfpm.PrepareForPackager(info, format); err != nil {
			return fmt.Errorf("prepare the package: %w", err)
		}
		name := j.path(packager.ConventionalFileName(info))
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := packager.Package(info, f); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		fmt.Println(name)
		return f.Close()
	}
}

// info describes a package. clean removes files that it is made from.
func (j job) info(format string) (info *nfpm.Info, clean func(), err error) {
	work, err := os.MkdirTemp("", "pack")
	if err != nil {
		return nil, nil, err
	}
	clean = func() { os.RemoveAll(work) }
	defer func() {
		if err != nil {
			clean()
		}
	}()
	info = &nfpm.Info{
		Name: "subpod", Arch: j.arch, Platform: "linux", VersionSchema: "none",
		Version: j.version.base, Prerelease: j.version.pre, VersionMetadata: j.version.commit, Release: "1",
		Section: "admin", Priority: "optional", Maintainer: maintainer, Vendor: "subpod", Homepage: homepage,
		License: "Apache-2.0", Description: about, MTime: j.time, DisableGlobbing: true,
	}
	info.RPM.BuildHost, info.RPM.Summary, info.RPM.Packager, info.RPM.Compression = "localhost", summary, maintainer, "zstd"
	info.Deb.Compression = "xz"
	need := needs[format]
	info.Depends, info.Recommends, info.Suggests = need.depends, need.recommends, need.suggests
	if info.Contents, err = j.contents(format, work); err != nil {
		return nil, nil, err
	}
	if info.Scripts, err = j.filledScripts(work); err != nil {
		return nil, nil, err
	}
	info.Changelog = filepath.Join(work, "changelog.yaml")
	entry := fmt.Sprintf("- semver: %s\n  date: %s\n  packager: %q\n  deb:\n    urgency: medium\n    distributions: [unstable]\n  changes:\n    - note: \"Built from %s. What has changed is in changelog.gz.\"\n",
		j.version.base, j.time.Format("2006-01-02T15:04:05Z"), maintainer, j.version.full)
	return info, clean, os.WriteFile(info.Changelog, []byte(entry), 0o644)
}

// contents lists the files of the tree, and those that only packages have.
func (j job) contents(format, work string) (files.Contents, error) {
	var list files.Contents
	add := func(source, to string, mode fs.FileMode) {
		for was, is := range moved[format] {
			to = strings.Replace(to, was, is, 1)
		}
		list = append(list, &files.Content{Source: source, Destination: to,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: j.time}})
	}
	err := filepath.WalkDir(j.stage, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		to := strings.TrimPrefix(name, filepath.Clean(j.stage))
		if format == "deb" && filepath.Base(to) == "LICENSE" {
			return nil // Debian has it in "copyright"
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(to, "/usr/bin/") {
			mode = 0o755
		}
		add(name, to, mode)
		return nil
	})
	if err != nil || format != "deb" {
		return list, err
	}
	extra := map[string]string{
		"/usr/share/doc/subpod/copyright":     copyright,
		"/usr/share/lintian/overrides/subpod": overrides,
	}
	for to, text := range extra {
		source := filepath.Join(work, filepath.Base(to)+"."+filepath.Base(filepath.Dir(to)))
		if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
			return nil, err
		}
		add(source, to, 0o644)
	}
	return list, nil
}

const copyright = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: subpod
Source: ` + homepage + `

Files: *
Copyright: The subpod authors
License: Apache-2.0
 On Debian systems, the text of the Apache License 2.0 is in
 /usr/share/common-licenses/Apache-2.0. The licences of the Go modules that the
 programs are linked with are in licenses.gz beside this file.
`

// overrides says why lintian is wrong.
const overrides = `# Go programs without cgo are static, and are built so on purpose: they run on any libc.
subpod: statically-linked-binary [usr/bin/*]
# Built from a tree, not from a bug report.
subpod: initial-upload-closes-no-bugs
`

var formats = regexp.MustCompile(`"(state|monitor)": ?([0-9]+)`)

// filledScripts copies the scripts with the formats that the packaged programs know.
func (j job) filledScripts(work string) (nfpm.Scripts, error) {
	tool := os.Getenv("TOOL")
	out, err := exec.Command(tool, "version", "--json").Output()
	if err != nil {
		// A version before there was anything to tell.
		out = []byte(`{"state": 1, "monitor": 1}`)
	}
	var pairs []string
	for _, m := range formats.FindAllStringSubmatch(string(out), -1) {
		pairs = append(pairs, "@"+strings.ToUpper(m[1])+"@", m[2])
	}
	if len(pairs) != 4 {
		return nfpm.Scripts{}, fmt.Errorf("%s version --json names no formats: %s", tool, out)
	}
	fill := func(name string) string {
		var text []byte
		if text, err = os.ReadFile(filepath.Join(j.scripts, name)); err != nil {
			return ""
		}
		to := filepath.Join(work, name)
		err = os.WriteFile(to, []byte(strings.NewReplacer(pairs...).Replace(string(text))), 0o755)
		return to
	}
	var s nfpm.Scripts
	for name, at := range map[string]*string{"preinst": &s.PreInstall, "postinst": &s.PostInstall, "prerm": &s.PreRemove, "postrm": &s.PostRemove} {
		if *at = fill(name); err != nil {
			return s, err
		}
	}
	return s, nil
}

// Command pack makes packages, archives and bills of materials of what "make install"
// has put into a directory. Its output depends on its arguments alone: the same tree
// gives the same bytes.
//
//	pack deb|rpm      a package of the tree STAGE (PREFIX=/usr)
//	pack archive      a .tar.gz of the tree STAGE (PREFIX=/)
//	pack sbom         a bill of materials (CycloneDX) of the programs in STAGE
//	pack sums         SHA256SUMS of what is in OUT
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// job is what is to be made.
type job struct {
	stage, out, arch, scripts string
	version                   version
	time                      time.Time
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	makers := map[string]func(job) error{"deb": makePackage("deb"), "rpm": makePackage("rpm"), "archive": makeArchive, "sbom": makeSBOM, "sums": makeSums}
	if len(args) == 0 || makers[args[0]] == nil {
		return fmt.Errorf("usage: pack deb|rpm|archive|sbom|sums FLAGS")
	}
	var j job
	var text string
	var epoch int64
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&j.stage, "stage", "", "directory with what was installed")
	flags.StringVar(&j.out, "out", "", "directory for what is made")
	flags.StringVar(&j.arch, "arch", "amd64", "architecture, Go's name")
	flags.StringVar(&j.scripts, "scripts", "", "directory with the packages' scripts")
	flags.StringVar(&text, "version", "", "version (tests/version.sh)")
	flags.Int64Var(&epoch, "epoch", 0, "time of everything, in seconds (SOURCE_DATE_EPOCH)")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	j.time = time.Unix(epoch, 0).UTC()
	var err error
	if j.version, err = parseVersion(text, j.time); err != nil {
		return err
	}
	if err := os.MkdirAll(j.out, 0o755); err != nil {
		return err
	}
	return makers[args[0]](j)
}

// version is a version of the tree, in the parts that packages order by.
type version struct {
	full string // 0.2.0-dev+d57127d
	base string // 0.2.0
	// pre is "dev" and the time of the commit, so that a later build is newer; empty for
	// a release.
	pre    string
	commit string // d57127d; empty for a release
}

var versions = regexp.MustCompile(`^([0-9]+\.[0-9]+\.[0-9]+)(-[0-9A-Za-z.]+)?(?:\+([0-9A-Za-z.-]+))?$`)

func parseVersion(text string, at time.Time) (version, error) {
	m := versions.FindStringSubmatch(text)
	if m == nil {
		return version{}, fmt.Errorf("version %q is not semantic", text)
	}
	v := version{full: text, base: m[1]}
	commit := strings.ReplaceAll(m[3], "-", ".")
	if m[2] != "" {
		v.pre = strings.TrimPrefix(m[2], "-")
	}
	if v.pre == "dev" {
		v.pre += at.Format("20060102150405")
	}
	if m[2] != "" || strings.HasSuffix(commit, "dirty") {
		v.commit = commit
	}
	return v, nil
}

// name is that of an archive without what tells its kind.
func (j job) name() string { return "subpod-" + j.version.full + "-linux-" + j.arch }

func (j job) path(name string) string { return filepath.Join(j.out, name) }

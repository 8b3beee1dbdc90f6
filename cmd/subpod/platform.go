package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/cpuarch"
)

// platformFlags are the flags that choose an image of an index.
type platformFlags struct {
	platform, arch, os, variant string
}

func (p *platformFlags) add(f *pflag.FlagSet) {
	f.StringVar(&p.platform, "platform", "", "OS/ARCH[/VARIANT] of the image to pull")
	f.StringVar(&p.arch, "arch", "", "architecture of the image to pull")
	f.StringVar(&p.os, "os", "", "operating system of the image to pull")
	f.StringVar(&p.variant, "variant", "", "variant of the architecture of the image to pull")
}

// asked returns the platform, "OS/ARCH" or "OS/ARCH/VARIANT"; "" for this machine's.
func (p *platformFlags) asked() (string, error) {
	if p.platform != "" && (p.arch != "" || p.os != "" || p.variant != "") {
		return "", usagef("--platform excludes --arch, --os and --variant")
	}
	system, arch, variant := p.os, p.arch, p.variant
	if p.platform != "" {
		parts := strings.Split(p.platform, "/")
		if len(parts) > 3 || slices.Contains(parts, "") {
			return "", usagef("invalid --platform %q: expected OS/ARCH[/VARIANT]", p.platform)
		}
		parts = append(parts, "", "")
		system, arch, variant = parts[0], parts[1], parts[2]
	}
	if strings.ContainsRune(system+arch+variant, '/') {
		return "", usagef("invalid --os, --arch or --variant: they have no \"/\"")
	}
	if system == "" && arch == "" && variant == "" {
		return "", nil
	}
	arch = cpuarch.Name(cmp.Or(arch, runtime.GOARCH))
	return strings.TrimSuffix(strings.ToLower(cmp.Or(system, runtime.GOOS))+"/"+arch+"/"+strings.ToLower(variant), "/"), nil
}

// checkRuns returns an error if this machine runs no programs of a platform, and whether an
// emulator does.
func checkRuns(platform string) (emulated bool, err error) {
	parts := strings.Split(platform, "/")
	system, arch := parts[0], parts[1]
	switch {
	case system != runtime.GOOS:
		return false, fmt.Errorf("the platform %s is refused: only images for %s run here", platform, runtime.GOOS)
	case arch == runtime.GOARCH, runtime.GOARCH == "amd64" && arch == "386", runtime.GOARCH == "arm64" && arch == "arm":
		return false, nil
	case emulates(binfmtDir, arch):
		return true, nil
	}
	return false, fmt.Errorf("this machine (%s/%s) does not run programs for %s: no emulator for them is registered in %s; install one (Debian, Ubuntu: sudo apt install qemu-user-static). \"subpod pull --platform\" needs none",
		runtime.GOOS, runtime.GOARCH, platform, binfmtDir)
}

// binfmtDir is where the kernel lists what runs programs that it does not know.
const binfmtDir = "/proc/sys/fs/binfmt_misc"

// elfMachines are the classes (1: 32 bits), byte orders (1: little endian) and machines of
// elf(5) by architecture.
var elfMachines = map[string]struct {
	class, order byte
	machine      uint16
}{
	"386": {1, 1, 3}, "amd64": {2, 1, 62}, "arm": {1, 1, 40}, "arm64": {2, 1, 183}, "riscv64": {2, 1, 243}, "loong64": {2, 1, 258},
	"ppc64le": {2, 1, 21}, "ppc64": {2, 2, 21}, "s390x": {2, 2, 22}, "mips": {1, 2, 8}, "mipsle": {1, 1, 8}, "mips64": {2, 2, 8}, "mips64le": {2, 1, 8},
}

// emulates reports whether the kernel runs programs for an architecture by an emulator that
// it has opened itself (the flag F): in a container there is none.
func emulates(dir, arch string) bool {
	m, known := elfMachines[arch]
	if !known {
		return false
	}
	head := make([]byte, 20)
	copy(head, []byte{0x7f, 'E', 'L', 'F', m.class, m.order, 1})
	var order binary.ByteOrder = binary.LittleEndian
	if m.order == 2 {
		order = binary.BigEndian
	}
	order.PutUint16(head[16:], 2)
	order.PutUint16(head[18:], m.machine)
	entries, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(path string) bool {
		text, err := os.ReadFile(path)
		return err == nil && runsELF(string(text), head)
	})
}

// runsELF reports whether an entry of binfmt_misc is enabled and runs what begins so.
func runsELF(entry string, head []byte) bool {
	field := map[string]string{}
	for line := range strings.Lines(entry) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		field[name] = value
	}
	magic, err := hex.DecodeString(field["magic"])
	if _, enabled := field["enabled"]; !enabled || err != nil || len(magic) == 0 || len(magic) > len(head) || field["offset"] != "0" || !strings.Contains(field["flags:"], "F") {
		return false
	}
	mask, err := hex.DecodeString(field["mask"])
	for i, b := range magic {
		bits := byte(0xff)
		if err == nil && i < len(mask) {
			bits = mask[i]
		}
		if b&bits != head[i]&bits {
			return false
		}
	}
	return true
}

// isFor reports whether an image is there that is for the platform, as far as it says.
func isFor(ctx context.Context, c *client.Client, ref, platform string) bool {
	info, err := imageInfo(ctx, c, ref)
	if err != nil {
		return false
	}
	parts := append(strings.Split(platform, "/"), "")
	arch := cpuarch.Name(info.Architecture)
	return cmp.Or(info.OS, parts[0]) == parts[0] && cmp.Or(arch, parts[1]) == parts[1] && (parts[2] == "" || info.Variant == "" || info.Variant == parts[2])
}

// ofPlatform sees to it that the name of the image stands for one of the platform that the
// flags ask for, and that this machine runs it: before anything is pulled.
func ofPlatform(ctx context.Context, conn *connection, o *runOptions, ref string) error {
	if o.wanted == "" {
		return nil
	}
	var err error
	if o.emulated, err = checkRuns(o.wanted); err != nil {
		return fmt.Errorf("run %s: %w", ref, err)
	}
	if o.pull == "always" || o.pull == "newer" || isFor(ctx, conn.Client, ref, o.wanted) {
		return nil
	}
	if o.pull == "never" {
		return fmt.Errorf("image %s is not here for %s, and --pull is never", ref, o.wanted)
	}
	return o.pullImage(ctx, conn.Client, ref)
}

func (o *runOptions) pullImage(ctx context.Context, c *client.Client, ref string) error {
	return pull(ctx, c, &api.PullRequest{Ref: ref, Platform: o.wanted}, o.quiet)
}

// foreign decides what becomes of a run that the server has refused since the image, which
// is here by its name, is for another architecture: nil is to try it with the emulator.
func foreign(ctx context.Context, c *client.Client, o *runOptions, ref string, ctr *runtimeapi.ContainerConfig, refusal error) error {
	info, err := imageInfo(ctx, c, ref)
	if err != nil || o.emulated {
		return refusal
	}
	if o.emulated, err = checkRuns(cmp.Or(info.OS, runtime.GOOS) + "/" + info.Architecture); err != nil {
		return fmt.Errorf("image %s: %w; \"subpod pull %s\" gets the one for this machine", ref, err, ref)
	}
	options, err := api.Options(ctr.Annotations)
	if err != nil {
		return err
	}
	options.Emulated = true
	return api.SetOptions(ctr.Annotations, options)
}

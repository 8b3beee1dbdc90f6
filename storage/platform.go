package storage

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	"golang.org/x/sys/cpu"

	"github.com/subpod/subpod/pkg/cpuarch"
)

// Platform is what an image is to be made for. The zero value is this machine: whatever
// of an index fits it best.
type Platform struct {
	OS, Architecture, Variant string
}

// ParsePlatform parses OS/ARCHITECTURE[/VARIANT]; "" is this machine. ErrBadReference.
func ParsePlatform(s string) (Platform, error) {
	if s == "" {
		return Platform{}, nil
	}
	parts := append(strings.Split(strings.ToLower(s), "/"), "")
	if len(parts) < 3 || len(parts) > 4 || parts[0] == "" || parts[1] == "" || len(s) > 100 {
		return Platform{}, fmt.Errorf("%w: the platform %.100q: expected OS/ARCHITECTURE[/VARIANT]", ErrBadReference, s)
	}
	return Platform{parts[0], cpuarch.Name(parts[1]), parts[2]}, nil
}

// String returns OS/ARCHITECTURE[/VARIANT].
func (p Platform) String() string {
	if p == (Platform{}) {
		p = Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	}
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// rank returns how well an image for q fits: the lower the better, negative for not.
func (p Platform) rank(q v1.Platform) int {
	if p == (Platform{}) {
		return rankOf(q)
	}
	variant := strings.ToLower(q.Variant)
	if !strings.EqualFold(q.OS, p.OS) || cpuarch.Name(q.Architecture) != p.Architecture || p.Variant != "" && variant != "" && variant != p.Variant {
		return -1
	}
	level := 0
	if _, err := fmt.Sscanf(variant, "v%d", &level); err != nil || p.Architecture == "amd64" {
		return max(level, 0) // the image for every processor first
	}
	return max(10-level, 0)
}

// fits reports whether an image is made for the platform, as far as that is known.
func (p Platform) fits(img Image) bool {
	if p == (Platform{}) {
		img.Variant = "" // what is written there is often wrong
	}
	return img.Architecture == "" || p.rank(v1.Platform{OS: cmp.Or(img.OS, runtime.GOOS), Architecture: img.Architecture, Variant: img.Variant}) >= 0
}

// RunsHere reports whether this machine's processor runs the image's programs without an
// emulator.
func (i Image) RunsHere() bool { return Platform{}.fits(i) }

// rankOf returns how well an image for p fits this machine: the lower the better,
// negative for one that does not run here.
func rankOf(p v1.Platform) int {
	arch, variant := cpuarch.Name(p.Architecture), strings.ToLower(p.Variant)
	if !strings.EqualFold(p.OS, runtime.GOOS) {
		return -1
	}
	level := 0
	if _, err := fmt.Sscanf(variant, "v%d", &level); variant != "" && err != nil {
		return -1
	}
	switch {
	case runtime.GOARCH == "amd64" && arch == "amd64":
		// The image for every processor first; of those that want more, what wants most.
		if level > processorLevel() {
			return -1
		}
		if level <= 1 {
			return 0
		}
		return 10 - level
	case arch == runtime.GOARCH:
		return max(10-level, 0)
	case runtime.GOARCH == "amd64" && arch == "386":
		return 20
	case runtime.GOARCH == "arm64" && arch == "arm":
		return 30 - min(level, 8)
	}
	return -1
}

// processorLevel returns which of the x86-64 levels the processor has, 1 to 4.
func processorLevel() int {
	x := cpu.X86
	switch {
	case !(x.HasCX16 && x.HasPOPCNT && x.HasSSE3 && x.HasSSSE3 && x.HasSSE41 && x.HasSSE42):
		return 1
	case !(x.HasAVX && x.HasAVX2 && x.HasBMI1 && x.HasBMI2 && x.HasFMA && x.HasOSXSAVE):
		return 2
	case !(x.HasAVX512F && x.HasAVX512BW && x.HasAVX512CD && x.HasAVX512DQ && x.HasAVX512VL):
		return 3
	}
	return 4
}

// corruptConfig says of an error of a configuration that cannot be read for what it
// contains that the image is corrupt. ErrCorrupt.
func corruptConfig(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var date *time.ParseError
	if errors.As(err, &syntax) || errors.As(err, &kind) || errors.As(err, &date) || err != nil && strings.Contains(err.Error(), "UnmarshalJSON: ") {
		return fmt.Errorf("%w: its configuration: %w", ErrCorrupt, err)
	}
	return err
}

// isIndex reports whether a media type is that of an index; "" may be.
func isIndex(mime string) bool { return mime == "" || manifest.MIMETypeIsMultiImage(mime) }

// candidates returns what an index, of Docker or OCI, has for a platform: what fits
// best first, and last what does not say what it is for. none describes what there is
// where that is nothing. ErrCorrupt.
func candidates(index []byte, want Platform) (found []v1.Descriptor, none string, err error) {
	var doc struct {
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(index, &doc); err != nil {
		return nil, "", fmt.Errorf("%w: its index: %w", ErrCorrupt, err)
	}
	rank := map[digest.Digest]int{}
	var others []string
	for _, d := range doc.Manifests {
		if d.Digest.Validate() != nil {
			return nil, "", fmt.Errorf("%w: its index has the digest %.80q", ErrCorrupt, d.Digest)
		}
		r := 100
		switch p := d.Platform; {
		case d.Annotations["vnd.docker.reference.type"] != "" || d.ArtifactType != "":
			continue // says something about another one
		case p != nil && (p.OS != "" || p.Architecture != ""):
			if r = want.rank(*p); r < 0 {
				others = append(others, strings.TrimSuffix(fmt.Sprintf("%.20s/%.20s/%.20s", p.OS, p.Architecture, p.Variant), "/"))
				continue
			}
		case !isIndex(d.MediaType):
			r = 200
		}
		if _, twice := rank[d.Digest]; !twice {
			rank[d.Digest] = r
			found = append(found, d)
		}
	}
	slices.SortStableFunc(found, func(a, b v1.Descriptor) int { return cmp.Compare(rank[a.Digest], rank[b.Digest]) })
	slices.Sort(others)
	others = slices.Compact(others)
	switch n := len(others); {
	case n == 0:
		none = "it has no images"
	case n > 10:
		none = fmt.Sprintf("it has images for %s and %d more", strings.Join(others[:10], ", "), n-10)
	default:
		none = "it has images for " + strings.Join(others, ", ")
	}
	return found, none, nil
}

package ocispec

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	mobyseccomp "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/ocispec/seccompbpf"
)

// maxProfile bounds a profile file; maxCached the number of kept profiles.
const (
	maxProfile = 4 << 20
	maxCached  = 64
)

// SeccompCache keeps profiles that were resolved and compiled, by their content
// and the capabilities that they were resolved for. Safe for concurrent use.
type SeccompCache struct {
	mu      sync.Mutex
	entries map[[sha256.Size]byte]seccompEntry
}

type seccompEntry struct {
	profile *specs.LinuxSeccomp // nil: an empty profile; shared, so read only
	bpf     string
}

// NewSeccompCache returns an empty cache.
func NewSeccompCache() *SeccompCache {
	return &SeccompCache{entries: map[[sha256.Size]byte]seccompEntry{}}
}

// seccomp resolves the container's profile; privileged containers have none.
func (b *builder) seccomp() error {
	//lint:ignore SA1019 deprecated, but older clients send it
	kind, ref, err := profile(b.sec.Seccomp, b.sec.SeccompProfilePath)
	if err != nil || b.sec.Privileged {
		return err
	}
	var content []byte
	switch kind {
	case runtimeapi.SecurityProfile_Unconfined:
		if content = b.unconfined(); content == nil {
			return nil
		}
	case runtimeapi.SecurityProfile_RuntimeDefault:
		if !b.Host.Seccomp {
			b.warn("this kernel has no seccomp: the default profile is left out")
			return nil
		}
		if b.SeccompDefault != "" {
			if content, err = readProfile(b.SeccompDefault); err != nil {
				return err
			}
		}
	case runtimeapi.SecurityProfile_Localhost:
		if !b.Host.Seccomp {
			return invalid("seccomp profile %s: this kernel has no seccomp", ref)
		}
		if !filepath.IsAbs(ref) {
			return invalid("seccomp profile %.80q is not an absolute path", ref)
		}
		if content, err = readProfile(ref); err != nil {
			return invalid("%w", err)
		}
	default:
		return invalid("unknown seccomp profile type %d", kind)
	}
	bounding := b.spec.Process.Capabilities.Bounding
	entry, err := b.Host.Cache.get(content, bounding)
	if err == nil && entry.profile == nil { // a file with an empty profile
		if content = b.unconfined(); content != nil {
			entry, err = b.Host.Cache.get(content, bounding)
		}
	}
	if err != nil {
		return invalid("seccomp profile %s: %w", ref, err)
	}
	if entry.profile == nil {
		return nil
	}
	b.out.SeccompBPF = entry.bpf
	own := *entry.profile
	own.Syscalls = slices.Clone(own.Syscalls)
	own.Architectures = slices.Clone(own.Architectures)
	b.spec.Linux.Seccomp = &own
	return nil
}

// get resolves and compiles a profile; empty content means the built-in default.
func (c *SeccompCache) get(content []byte, bounding []string) (seccompEntry, error) {
	if c == nil {
		return resolveProfile(content, bounding)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d %s\n%s", len(content), content, strings.Join(bounding, " "))
	key := [sha256.Size]byte(h.Sum(nil))
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		return e, nil
	}
	e, err := resolveProfile(content, bounding)
	if err != nil {
		return e, err
	}
	if len(c.entries) >= maxCached {
		clear(c.entries)
	}
	c.entries[key] = e
	return e, nil
}

func resolveProfile(content []byte, bounding []string) (seccompEntry, error) {
	// The profile's conditions look at the bounding set only.
	subject := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: bounding}}}
	var e seccompEntry
	var err error
	if len(content) == 0 {
		e.profile, err = mobyseccomp.GetDefaultProfile(subject)
	} else {
		e.profile, err = mobyseccomp.LoadProfile(string(content), subject)
	}
	if err != nil || e.profile == nil {
		return e, err
	}
	if err := checkNotify(e.profile); err != nil {
		return e, err
	}
	refuseHandles(e.profile)
	bpf, err := seccompbpf.Compile(e.profile)
	if errors.Is(err, seccompbpf.ErrUnsupported) {
		return e, nil
	}
	e.bpf = base64.StdEncoding.EncodeToString(bpf)
	return e, err
}

// checkNotify refuses a profile that leaves decisions to a listener and has none: the
// kernel would answer ENOSYS in its place.
func checkNotify(p *specs.LinuxSeccomp) error {
	if p.ListenerPath != "" {
		return nil
	}
	asks := func(s specs.LinuxSyscall) bool { return s.Action == specs.ActNotify }
	if p.DefaultAction == specs.ActNotify || slices.ContainsFunc(p.Syscalls, asks) {
		return errors.New("SCMP_ACT_NOTIFY without a listenerPath")
	}
	return nil
}

func readProfile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not block
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("seccomp profile %s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	if len(b) == 0 || len(b) > maxProfile {
		return nil, fmt.Errorf("seccomp profile %s has %d bytes: empty or more than %d", path, len(b), maxProfile)
	}
	return b, nil
}

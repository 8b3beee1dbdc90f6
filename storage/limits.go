package storage

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/subpod/subpod/pkg/errclass"
)

// ErrTooLarge means that an image exceeds one of Options.Limits. The error names the
// limit as the configuration file does.
var ErrTooLarge = errclass.New(errdefs.ErrFailedPrecondition, "image exceeds a limit")

// Limits bound what an image can choose. 0 is the default of each.
type Limits struct {
	// Manifest and Config are the bytes of a manifest or index, and of a
	// configuration.
	Manifest, Config int64
	// User, Env and Labels are bytes: of the configuration's USER, and of all its
	// variables and labels together.
	User, Env, Labels int64
	// Layers and Entries are counts: of layers, and of files, directories and links
	// in all layers that are unpacked together.
	Layers, Entries int64
	// Names is the number of names that one archive gives to its images.
	Names int64
	// Size is the bytes that all layers of an image take when they are unpacked.
	Size int64
	// Memory is the bytes that each of the processes that unpack an image may allocate.
	Memory int64
}

// DefaultLimits hold where Limits says nothing.
func DefaultLimits() Limits {
	return Limits{
		Manifest: 1 << 20, Config: 1 << 20,
		User: 256, Env: 256 << 10, Labels: 256 << 10,
		Layers: 500, // as many as the kernel stacks (OVL_MAX_STACK)
		// A million is more than any distribution has files.
		Entries: 1000000, Names: 256,
		Size: 128 << 30, Memory: 1 << 30,
	}
}

// withDefaults returns l with the default in the place of each 0.
func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	for _, f := range []struct{ value, def *int64 }{
		{&l.Manifest, &d.Manifest}, {&l.Config, &d.Config}, {&l.User, &d.User}, {&l.Env, &d.Env}, {&l.Labels, &d.Labels},
		{&l.Layers, &d.Layers}, {&l.Entries, &d.Entries}, {&l.Names, &d.Names}, {&l.Size, &d.Size}, {&l.Memory, &d.Memory},
	} {
		if *f.value <= 0 {
			*f.value = *f.def
		}
	}
	return l
}

// tooLarge reports that what is larger than the limit of this name allows.
func tooLarge(name, what string, limit int64) error {
	return fmt.Errorf("%w: %s, more than images.limits.%s allows (%d)", ErrTooLarge, what, name, limit)
}

// atMost returns nil for n up to limit, and ErrTooLarge otherwise.
func atMost(name, what string, n, limit int64) error {
	if n <= limit {
		return nil
	}
	return tooLarge(name, fmt.Sprintf("%s %d", what, n), limit)
}

// checkManifest checks a manifest or index of n bytes.
func (l Limits) checkManifest(n int64) error {
	return atMost("manifest", "the bytes of its manifest are", n, l.Manifest)
}

// checkLayers checks the number of an image's layers.
func (l Limits) checkLayers(n int) error {
	return atMost("layers", "the number of its layers is", int64(n), l.Layers)
}

// checkConfigSize checks a configuration of n bytes.
func (l Limits) checkConfigSize(n int64) error {
	return atMost("config", "the bytes of its configuration are", n, l.Config)
}

// checkConfig checks an image's configuration. One that is no JSON passes: that is
// for others to report.
func (l Limits) checkConfig(raw []byte) error {
	if err := l.checkConfigSize(int64(len(raw))); err != nil {
		return err
	}
	var config v1.Image
	if json.Unmarshal(raw, &config) != nil {
		return nil
	}
	env, labels := 0, 0
	for _, e := range config.Config.Env {
		env += len(e)
	}
	for k, v := range config.Config.Labels {
		labels += len(k) + len(v)
	}
	for _, c := range []error{
		atMost("user", "the bytes of its USER are", int64(len(config.Config.User)), l.User),
		atMost("env", "the bytes of its environment are", int64(env), l.Env),
		atMost("labels", "the bytes of its labels are", int64(labels), l.Labels),
		l.checkLayers(len(config.RootFS.DiffIDs)),
	} {
		if c != nil {
			return c
		}
	}
	return nil
}

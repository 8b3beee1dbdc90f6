package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"
)

// registries reads what the user, or the machine, has configured about registries:
// credentials, mirrors, certificates and signatures.
type registries struct {
	opts   *Options
	cache  string // directory for what the libraries remember
	log    *slog.Logger
	warned sync.Map // paths that a warning was logged for
}

// systemContext returns containers/image's settings for one pull or load, with
// temporary files below tmp. Where the options name no file, the library looks
// in the user's home and then in /etc; configuration is read anew each time, so
// that a change needs no restart.
func (r *registries) systemContext(tmp string) (*types.SystemContext, error) {
	sys := &types.SystemContext{
		BigFilesTemporaryDir:        tmp,
		BlobInfoCacheDir:            r.cache,
		DockerPerHostCertDirPath:    r.opts.CertsDir,
		AuthFilePath:                r.opts.AuthFile,
		SystemRegistriesConfPath:    r.opts.RegistriesConf,
		SystemRegistriesConfDirPath: r.opts.RegistriesConfDir,
		UserShortNameAliasConfPath:  filepath.Join(r.cache, "short-name-aliases.conf"),
		DockerRegistryUserAgent:     userAgent,
	}
	if err := r.hostFiles(sys, tmp); err != nil {
		return nil, err
	}
	sysregistriesv2.InvalidateCache()
	return sys, nil
}

// userAgent is how requests name their sender.
const userAgent = "subpod"

// policy returns the signature policy: the configured file, else the user's,
// else the machine's, else "accept anything", which is logged once. A policy that
// can't be read, or that may be there in a directory that can't be searched, is an
// error: no image passes that it might refuse.
func (r *registries) policy() (*signature.PolicyContext, error) {
	policy, err := r.readPolicy()
	if err != nil {
		return nil, err
	}
	return signature.NewPolicyContext(policy)
}

// readPolicy is policy as it is written.
func (r *registries) readPolicy() (*signature.Policy, error) {
	own := filepath.Join(r.configHome(), "policy.json")
	path := r.opts.PolicyJSON
	if path == "" {
		paths, err := r.policyPaths()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSignature, err)
		}
		if path = firstFile(paths...); path == "" {
			if _, before := r.warned.LoadOrStore("policy.json", true); !before {
				r.log.Warn("no policy.json: images are accepted without signatures", "looked_for", strings.Join(paths, ", "))
			}
			return &signature.Policy{Default: acceptAnything}, nil
		}
	}
	if err := plainFile(path); err != nil {
		return nil, fmt.Errorf("%w: read policy: %w", ErrSignature, err)
	}
	policy, err := signature.NewPolicyFromFile(path)
	if errors.Is(err, fs.ErrPermission) && path != own {
		return nil, fmt.Errorf("%w: read policy: %w; have it made readable, or write a policy of your own into %s", ErrSignature, err, own)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read policy: %w", ErrSignature, err)
	}
	return policy, nil
}

var acceptAnything = signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}

// acceptsAnything reports whether a policy refuses no image of any registry.
func acceptsAnything(p *signature.Policy) bool {
	if !reflect.DeepEqual(p.Default, acceptAnything) {
		return false
	}
	for _, requirements := range p.Transports[docker.Transport.Name()] {
		if !reflect.DeepEqual(requirements, acceptAnything) {
			return false
		}
	}
	return true
}

// policyPaths returns where policies are looked for.
func (r *registries) policyPaths() ([]string, error) {
	paths, err := searchPaths(configfile.File{Name: "policy", Extension: "json", DoNotLoadDropInFiles: true})
	if err != nil {
		return nil, err
	}
	// With another $XDG_CONFIG_HOME, a policy in the usual place still counts: nothing
	// may pass only because the directory has another name.
	usual := filepath.Join(r.opts.Home, ".config", "containers", "policy.json")
	return slices.Compact(slices.Insert(paths.MainFiles, 1, usual)), nil
}

// firstFile returns the first of paths that exists, or "".
func firstFile(paths ...string) string {
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return p
		}
	}
	return ""
}

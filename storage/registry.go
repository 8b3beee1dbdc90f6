package storage

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"
)

// Auth is what a caller knows about a registry's access control, as in CRI's
// AuthConfig. It overrides auth.json.
type Auth struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token, RegistryToken a bearer token.
	IdentityToken, RegistryToken string
	ServerAddress                string
	// Auth is base64 of "username:password"; Username and Password win.
	Auth string
}

// credentials returns user and password, decoded from Auth if need be.
func (a *Auth) credentials() (user, password string, err error) {
	if a.Username != "" || a.Auth == "" {
		return a.Username, a.Password, nil
	}
	raw, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return "", "", fmt.Errorf("%w: the auth field is not base64", ErrUnauthorized)
	}
	user, password, ok := strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
	if !ok {
		return "", "", fmt.Errorf("%w: the auth field is not base64 of user:password", ErrUnauthorized)
	}
	return user, password, nil
}

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
func (r *registries) systemContext(auth *Auth, tmp string) (*types.SystemContext, error) {
	sys := &types.SystemContext{
		BigFilesTemporaryDir:        tmp,
		BlobInfoCacheDir:            r.cache,
		DockerPerHostCertDirPath:    r.opts.CertsDir,
		AuthFilePath:                r.opts.AuthFile,
		SystemRegistriesConfPath:    r.opts.RegistriesConf,
		SystemRegistriesConfDirPath: r.opts.RegistriesConfDir,
		UserShortNameAliasConfPath:  filepath.Join(r.cache, "short-name-aliases.conf"),
		DockerRegistryUserAgent:     "subpod",
	}
	if err := r.hostFiles(sys, tmp); err != nil {
		return nil, err
	}
	sysregistriesv2.InvalidateCache()
	if auth == nil {
		return sys, nil
	}
	user, password, err := auth.credentials()
	if err != nil {
		return nil, err
	}
	sys.DockerBearerRegistryToken = auth.RegistryToken
	if user != "" || password != "" || auth.IdentityToken != "" {
		sys.DockerAuthConfig = &types.DockerAuthConfig{Username: user, Password: password, IdentityToken: auth.IdentityToken}
	}
	return sys, nil
}

// policy returns the signature policy: the configured file, else the user's,
// else the machine's, else "accept anything", which is logged once. A policy that
// can't be read, or that may be there in a directory that can't be searched, is an
// error: no image passes that it might refuse.
func (r *registries) policy() (*signature.PolicyContext, error) {
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
			return signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
		}
	}
	policy, err := signature.NewPolicyFromFile(path)
	if errors.Is(err, fs.ErrPermission) && path != own {
		return nil, fmt.Errorf("%w: read policy: %w; have it made readable, or write a policy of your own into %s", ErrSignature, err, own)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read policy: %w", ErrSignature, err)
	}
	return signature.NewPolicyContext(policy)
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

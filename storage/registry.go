package storage

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containers/image/v5/pkg/sysregistriesv2"
	"github.com/containers/image/v5/signature"
	"github.com/containers/image/v5/types"
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

// systemContext returns containers/image's settings for one pull or load, with
// temporary files below tmp. Where the options name no file, the library looks
// in the user's home and then in /etc; configuration is read anew each time, so
// that a change needs no restart.
func (s *Store) systemContext(auth *Auth, tmp string) (*types.SystemContext, error) {
	sys := &types.SystemContext{
		BigFilesTemporaryDir:        tmp,
		BlobInfoCacheDir:            filepath.Join(s.own, "cache"),
		DockerPerHostCertDirPath:    s.opts.CertsDir,
		AuthFilePath:                s.opts.AuthFile,
		SystemRegistriesConfPath:    s.opts.RegistriesConf,
		SystemRegistriesConfDirPath: s.opts.RegistriesConfDir,
		UserShortNameAliasConfPath:  filepath.Join(s.own, "cache", "short-name-aliases.conf"),
		DockerRegistryUserAgent:     "subpod",
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
// else the machine's, else "accept anything", which is said in the log once.
func (s *Store) policy() (*signature.PolicyContext, error) {
	path := s.opts.PolicyJSON
	if path == "" {
		path = firstFile(filepath.Join(s.opts.Home, ".config", "containers", "policy.json"), "/etc/containers/policy.json")
	}
	var policy *signature.Policy
	if path == "" {
		s.noPolicy.Do(func() {
			s.log.Warn("no policy.json: images are accepted without signatures",
				"looked_for", "~/.config/containers/policy.json, /etc/containers/policy.json")
		})
		policy = &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}
	} else {
		var err error
		if policy, err = signature.NewPolicyFromFile(path); err != nil {
			return nil, fmt.Errorf("%w: read policy: %w", ErrSignature, err)
		}
	}
	return signature.NewPolicyContext(policy)
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

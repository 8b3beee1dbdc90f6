package storage

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"go.podman.io/image/v5/docker/reference"
	authconfig "go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

// authEntry is one registry, repository or image in auth.json.
type authEntry struct {
	Auth          string `json:"auth,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
}

// credentialsFor returns what the user's auth.json and credential helpers say about an
// image and its mirrors, in the form of auth.json; nil for nothing. A content process
// has no access to the files, and runs no helpers.
func credentialsFor(sys *types.SystemContext, named reference.Named) ([]byte, error) {
	if sys.DockerAuthConfig != nil {
		return nil, nil // the request says it
	}
	sources := []reference.Named{named}
	registry, err := sysregistriesv2.FindRegistry(sys, named.Name())
	if err != nil {
		return nil, fmt.Errorf("read registries.conf: %w", err)
	}
	if registry != nil {
		pulls, err := registry.PullSourcesFromReference(named)
		if err != nil {
			return nil, fmt.Errorf("read registries.conf: %w", err)
		}
		for _, p := range pulls {
			sources = append(sources, p.Reference)
		}
	}
	auths := map[string]authEntry{}
	for _, s := range sources {
		if _, done := auths[s.Name()]; done {
			continue
		}
		c, err := authconfig.GetCredentialsForRef(sys, s)
		if err != nil {
			return nil, fmt.Errorf("credentials for %s: %w", reference.Domain(s), err)
		}
		if c == (types.DockerAuthConfig{}) {
			continue
		}
		e := authEntry{IdentityToken: c.IdentityToken}
		if c.Username != "" || c.Password != "" {
			e.Auth = base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))
		}
		auths[s.Name()] = e
	}
	if len(auths) == 0 {
		return nil, nil
	}
	return json.Marshal(map[string]any{"auths": auths})
}

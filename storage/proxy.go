package storage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"go.podman.io/image/v5/docker/reference"
	authconfig "go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/pkg/tlsclientconfig"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/storage/internal/fetch"
)

const (
	// spoolLimit bounds the blobs that are kept in files while they are downloaded.
	spoolLimit = 4 << 30
	// spoolKeep is how long the whole blobs of a failed pull wait for the next one.
	spoolKeep = 30 * time.Minute
	// retryDelay is the wait before the second attempt of a request, about.
	retryDelay = 250 * time.Millisecond
)

// startProxy starts the proxy through which an image is pulled from endpoints. The
// credentials are the proxy's alone: containers/image needs none, and gets none.
func (im *Images) startProxy(ctx context.Context, endpoints []fetch.Endpoint) (*fetch.Proxy, error) {
	o := im.store.opts
	servers, err := im.registries.signatureServers()
	if err != nil {
		return nil, fmt.Errorf("read registries.d: %w", err)
	}
	p, err := fetch.Start(ctx, fetch.Config{Endpoints: endpoints, Elsewhere: servers, Spool: im.spool, UserAgent: userAgent,
		Timeout: o.PullTimeout, Delay: o.retryDelay, Log: o.Log})
	if err != nil {
		return nil, fmt.Errorf("start the proxy of a pull: %w", err)
	}
	return p, nil
}

// endpoints returns where an image may be pulled from, without credentials: the mirrors
// of registries.conf, then the registry itself.
func (r *registries) endpoints(sys *types.SystemContext, named reference.Named) ([]fetch.Endpoint, error) {
	sources := []sysregistriesv2.PullSource{{Reference: named}}
	registry, err := sysregistriesv2.FindRegistry(sys, named.Name())
	local := err == nil && registry == nil && onLoopback(reference.Domain(named))
	if err == nil && registry != nil {
		sources, err = registry.PullSourcesFromReference(named)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read registries.conf: %w", ErrConfiguration, err)
	}
	var all []fetch.Endpoint
	for _, s := range sources {
		domain := reference.Domain(s.Reference)
		e := fetch.Endpoint{Host: domain, Repo: reference.Path(s.Reference), Insecure: s.Endpoint.Insecure, Local: local, Namespace: s.Endpoint.NamespaceProxy}
		if domain == dockerDomain {
			e.Host = dockerHost
		}
		if e.TLS, err = certificates(sys, domain); err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// The registry of images whose names have none, as names and as requests have it.
const (
	dockerDomain = "docker.io"
	dockerHost   = "registry-1.docker.io"
)

// addCredentials gives endpoints of the image what the request, or the user's files and
// credential helpers, have for them.
func addCredentials(sys *types.SystemContext, named reference.Named, auth *Auth, endpoints []fetch.Endpoint) error {
	given, err := auth.fetched()
	if err != nil {
		return err
	}
	for i := range endpoints {
		e := &endpoints[i]
		domain := e.Host
		if domain == dockerHost {
			domain = dockerDomain
		}
		if given != (fetch.Credentials{}) && auth.isFor(domain, reference.Domain(named)) {
			e.Credentials = given
			continue
		}
		repository, err := reference.WithName(domain + "/" + e.Repo)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBadReference, err)
		}
		if e.Credentials, err = storedCredentials(sys, repository); err != nil {
			return err
		}
	}
	return nil
}

// storedCredentials returns what the user's auth.json, or a credential helper, has for
// a repository.
func storedCredentials(sys *types.SystemContext, named reference.Named) (fetch.Credentials, error) {
	c, err := authconfig.GetCredentialsForRef(sys, named)
	if err != nil {
		return fetch.Credentials{}, fmt.Errorf("%w: read the credentials for %s: %w", ErrConfiguration, reference.Domain(named), err)
	}
	return fetch.Credentials{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken}, nil
}

// certificates returns the settings for TLS with a registry: those of its directory in
// certs.d, where there is one.
func certificates(sys *types.SystemContext, domain string) (*tls.Config, error) {
	conf := &tls.Config{}
	dirs := []string{sys.DockerPerHostCertDirPath}
	if dirs[0] == "" {
		paths, err := searchPaths(configfile.File{Name: "certs", Extension: "d", DoNotLoadMainFiles: true, DoNotUseExtensionForConfigName: true})
		if err != nil {
			return nil, err
		}
		dirs = append(paths.DropInDirectories, filepath.Join(etcDir, "docker", "certs.d"))
	}
	for _, dir := range dirs {
		if dir = filepath.Join(dir, domain); !exists(dir) {
			continue
		}
		if err := tlsclientconfig.SetupCertificates(dir, conf); err != nil {
			return nil, fmt.Errorf("%w: read the certificates for %s: %w", ErrConfiguration, domain, err)
		}
		break
	}
	return conf, nil
}

// throughProxy changes sys so that the library asks the proxy behind route. A server that
// it reaches through it, of signatures that are kept elsewhere, it verifies with the
// certificates of endpoints, or not at all if all of these are insecure.
func throughProxy(sys *types.SystemContext, route fetch.Route, endpoints []fetch.Endpoint) {
	sys.DockerProxy = route.ProxyFor
	// "Insecure" makes the library ask in plain HTTP, which ends at the proxy.
	sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	sys.BaseTLSConfig = &tls.Config{}
	if slices.ContainsFunc(endpoints, func(e fetch.Endpoint) bool { return !e.Insecure }) {
		sys.BaseTLSConfig.VerifyConnection = func(c tls.ConnectionState) error { return verifyServer(c, endpoints) }
	}
}

// noCredentials keeps the library from looking for any.
func noCredentials(sys *types.SystemContext) {
	sys.DockerAuthConfig, sys.DockerBearerRegistryToken = &types.DockerAuthConfig{}, ""
	sys.AuthFilePath = filepath.Join(sys.BigFilesTemporaryDir, "no-auth.json")
}

// verifyServer verifies a server's certificate as crypto/tls does by itself.
func verifyServer(c tls.ConnectionState, endpoints []fetch.Endpoint) error {
	o := x509.VerifyOptions{DNSName: c.ServerName, Intermediates: x509.NewCertPool()}
	for _, cert := range c.PeerCertificates[1:] {
		o.Intermediates.AddCert(cert)
	}
	_, err := c.PeerCertificates[0].Verify(o)
	for _, e := range endpoints {
		if err != nil && e.TLS != nil && e.TLS.RootCAs != nil {
			o.Roots = e.TLS.RootCAs
			_, err = c.PeerCertificates[0].Verify(o)
		}
	}
	return err
}

// explain returns the proxy's reason for a pull that failed for want of an answer, and
// err where it failed otherwise.
func explain(p *fetch.Proxy, err error) error {
	reason := p.Err()
	if err == nil || reason == nil || errors.Is(reason, context.Canceled) || errors.Is(err, errContentKilled) {
		return err
	}
	if errors.Is(reason, unix.ENOSPC) || errors.Is(reason, unix.EDQUOT) {
		return reason
	}
	switch classOf(err) {
	case nil, ErrRegistryUnavailable, ErrUnauthorized, ErrImageNotFound:
		if !errors.Is(err, context.Canceled) {
			return reason
		}
	}
	return err
}

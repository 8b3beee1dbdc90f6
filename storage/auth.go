package storage

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/subpod/subpod/storage/internal/fetch"
)

// Auth is what a caller knows about a registry's access control, as in CRI's
// AuthConfig. It overrides auth.json, for the registry that it is for: ServerAddress, or
// the one that the image's name begins with. No mirror gets it, unless ServerAddress
// names the mirror.
type Auth struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token, RegistryToken a bearer token.
	IdentityToken, RegistryToken string
	// ServerAddress is a host[:port], or a URL of which only these count; "" is the
	// registry of the image's name.
	ServerAddress string
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

// fetched returns what is sent, the zero value for nothing.
func (a *Auth) fetched() (fetch.Credentials, error) {
	if a == nil {
		return fetch.Credentials{}, nil
	}
	user, password, err := a.credentials()
	return fetch.Credentials{Username: user, Password: password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}, err
}

// withoutSecret returns err, or, where its text has one of the secrets that were sent, as a
// registry's answer may, only its class.
func withoutSecret(err error, sent fetch.Credentials) error {
	basic := ""
	if sent.Password != "" {
		basic = base64.StdEncoding.EncodeToString([]byte(sent.Username + ":" + sent.Password))
	}
	text := registrysPart(err)
	repeated := func(secret string) bool { return fetch.Repeats(text, secret) }
	if !slices.ContainsFunc([]string{sent.Password, basic, sent.IdentityToken}, repeated) && !bearerToken().MatchString(text) {
		return err
	}
	if class := classOf(err); class != nil {
		return fmt.Errorf("%w: %w", class, errRepeated)
	}
	return errRepeated
}

// bearerToken is what a token server has given, and only the library knows, as it is sent.
var bearerToken = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)bearer [\w.~+/-]{20}`) })

// registrysPart returns what of an error's text may be a registry's. Where nobody was reached that
// is nothing but where it has sent us: a password such as "registry" is in our own words.
func registrysPart(err error) string {
	var dial *net.OpError
	var name *net.DNSError
	if !errors.As(err, &dial) && !errors.As(err, &name) {
		return err.Error()
	}
	var request *url.Error
	if errors.As(err, &request) {
		if u, err := url.Parse(request.URL); err == nil {
			return u.RequestURI()
		}
	}
	return ""
}

// errRepeated stands for what a registry said.
var errRepeated = errors.New("the registry's error is left out, it has the credentials in it")

// isFor reports whether the credentials belong to the registry host, for an image whose
// name begins with the registry named.
func (a *Auth) isFor(host, named string) bool {
	if a.ServerAddress != "" {
		named = a.ServerAddress
	}
	return registryHost(host) == registryHost(named)
}

// registryHost returns the host[:port] of a registry's address in one form: those of
// Docker's registry are the same, and so are a host with and without the port of HTTPS.
func registryHost(addr string) string {
	addr = strings.ToLower(addr)
	plain := false
	if rest, ok := strings.CutPrefix(addr, "http://"); ok {
		addr, plain = rest, true
	}
	addr, _, _ = strings.Cut(strings.TrimPrefix(addr, "https://"), "/")
	addr = addr[strings.LastIndex(addr, "@")+1:]
	if plain {
		addr = strings.TrimSuffix(addr, ":80")
	} else {
		addr = strings.TrimSuffix(addr, ":443")
	}
	switch addr {
	case dockerDomain, "index.docker.io", dockerHost:
		return dockerDomain
	}
	return addr
}

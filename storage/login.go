package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"go.podman.io/image/v5/docker"
	authconfig "go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/storage/internal/fetch"
)

// Login checks the credentials with the registry ("host[:port]", docker.io for "")
// and, where they are good, writes them into the user's auth.json, or passes
// them to the credential helper that is configured there. It returns where they
// are. ErrUnauthorized, ErrRegistryUnavailable, ErrBadReference.
func (im *Images) Login(ctx context.Context, registry, user, password string) (file string, err error) {
	registry, err = registryName(registry)
	if err != nil {
		return "", err
	}
	if user == "" || password == "" {
		return "", fmt.Errorf("%w: log in to %s: user name and password are needed", ErrUnauthorized, registry)
	}
	tmp, err := makeTmp(im.store.dirs.tmp())
	if err != nil {
		return "", classify(ctx, err)
	}
	defer os.RemoveAll(tmp)
	sys, err := im.registries.systemContext(tmp)
	if err != nil {
		return "", err
	}
	sys.DockerProxy = keepTLS()
	if err := docker.CheckAuth(ctx, sys, user, password, registry); err != nil {
		return "", fmt.Errorf("log in to %s: %w", registry, withoutSecret(classify(ctx, err), fetch.Credentials{Username: user, Password: password}))
	}
	writableAuthFile(sys)
	file, err = authconfig.SetCredentials(sys, registry, user, password)
	if err != nil {
		return "", fmt.Errorf("store the credentials for %s: %w", registry, err)
	}
	return file, nil
}

// Logout removes the credentials for a registry, or all, from the user's
// auth.json. ErrNotLoggedIn.
func (im *Images) Logout(ctx context.Context, registry string, all bool) error {
	tmp, err := makeTmp(im.store.dirs.tmp())
	if err != nil {
		return classify(ctx, err)
	}
	defer os.RemoveAll(tmp)
	sys, err := im.registries.systemContext(tmp)
	if err != nil {
		return err
	}
	writableAuthFile(sys)
	if all {
		return authconfig.RemoveAllAuthentication(sys)
	}
	if registry, err = registryName(registry); err != nil {
		return err
	}
	err = authconfig.RemoveAuthentication(sys, registry)
	if errors.Is(err, authconfig.ErrNotLoggedIn) {
		return fmt.Errorf("%w: no credentials for %s are stored", ErrNotLoggedIn, registry)
	}
	return err
}

// writableAuthFile takes the auth.json of the session, which is also podman's default,
// where the chosen one is not in a node that shows the user's configuration read-only.
func writableAuthFile(sys *types.SystemContext) {
	session := os.Getenv("XDG_RUNTIME_DIR")
	if sys.AuthFilePath == "" || session == "" || !errors.Is(unix.Access(filepath.Dir(sys.AuthFilePath), unix.W_OK), unix.EROFS) {
		return
	}
	if dir := filepath.Join(session, "containers"); unix.Access(dir, unix.W_OK) == nil {
		sys.AuthFilePath = filepath.Join(dir, "auth.json")
	}
}

// ErrNotLoggedIn means that auth.json has no credentials for a registry.
var ErrNotLoggedIn = errclass.New(errdefs.ErrNotFound, "not logged in")

// registryName checks the name of a registry.
func registryName(name string) (string, error) {
	name = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://"), "/")
	if name == "" {
		return "docker.io", nil
	}
	if strings.ContainsAny(name, "/@ ") {
		return "", fmt.Errorf("%w: %q is not the name of a registry", ErrBadReference, name)
	}
	return name, nil
}

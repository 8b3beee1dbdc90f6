package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"
	"golang.org/x/sys/unix"
)

// plainFiles returns ErrConfiguration where a file of the configuration is none that the
// libraries could read, or one of the user's about registries is closed to the user. They open what is there: a
// FIFO would keep them waiting, and a device may have no end.
func (r *registries) plainFiles(sys *types.SystemContext) error {
	files, err := r.configFiles(sys)
	if err != nil {
		return err
	}
	own := filepath.Join(r.configHome(), "registries") // .conf, .conf.d, .d
	for _, path := range files {
		err := plainFile(path)
		if err == nil && strings.HasPrefix(path, own) {
			err = openable(path)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrConfiguration, err)
		}
	}
	return nil
}

// configFiles returns what the libraries may read, beside a policy.
func (r *registries) configFiles(sys *types.SystemContext) ([]string, error) {
	files := []string{sys.AuthFilePath, filepath.Join(r.configHome(), "auth.json"),
		filepath.Join(r.opts.Home, ".docker", "config.json"), filepath.Join(r.opts.Home, ".dockercfg")}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	}
	for _, kind := range []struct {
		file    configfile.File
		pattern string // of the files in its directories
	}{
		{configfile.File{Name: "registries", Extension: "conf", EnvironmentName: "CONTAINERS_REGISTRIES_CONF",
			CustomConfigFilePath: sys.SystemRegistriesConfPath, CustomConfigFileDropInDirectory: sys.SystemRegistriesConfDirPath}, "*.conf"},
		{configfile.File{Name: "registries", Extension: "yaml", DoNotLoadMainFiles: true, DoNotUseExtensionForConfigName: true}, "*.yaml"},
		{configfile.File{Name: "certs", Extension: "d", DoNotLoadMainFiles: true, DoNotUseExtensionForConfigName: true}, "*/*"},
	} {
		paths, err := searchPaths(kind.file)
		if err != nil {
			return nil, err
		}
		files = append(files, paths.MainFiles...)
		for _, dir := range paths.DropInDirectories {
			found, _ := filepath.Glob(filepath.Join(dir, kind.pattern))
			files = append(files, append(found, dir)...)
		}
	}
	if dir := sys.DockerPerHostCertDirPath; dir != "" {
		found, _ := filepath.Glob(filepath.Join(dir, "*/*"))
		files = append(files, found...)
	}
	return files, nil
}

// plainFile returns an error for what is there and neither a file, a directory nor /dev/null.
func plainFile(path string) error {
	st, err := os.Stat(path)
	if err != nil || st.Mode().IsRegular() || st.IsDir() {
		return nil // reading it tells the rest
	}
	if null, err := os.Stat(os.DevNull); err == nil && os.SameFile(st, null) {
		return nil
	}
	what := "a device"
	switch st.Mode().Type() {
	case fs.ModeNamedPipe:
		what = "a FIFO"
	case fs.ModeSocket:
		what = "a socket"
	}
	return fmt.Errorf("%s is %s, not a regular file", path, what)
}

// openable returns an error for a path that the user is not allowed to open.
func openable(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil // reading it tells the rest
	}
	return f.Close()
}

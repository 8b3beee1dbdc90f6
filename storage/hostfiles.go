package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"go.podman.io/image/v5/types"
	"sigs.k8s.io/yaml"
)

// The libraries read the machine's configuration below /etc where the user has none,
// and fail on the first file there that they may not read. An administrator's file
// that is closed to users is not meant for them, so these functions show the
// libraries what is left without it. policy.json is the exception: see policy.

// etcDir is where the machine's configuration is.
const etcDir = "/etc"

// hostFiles points sys to copies below tmp of the machine's configuration where the
// user may not read all of it.
func (r *registries) hostFiles(sys *types.SystemContext, tmp string) error {
	r.authFile(sys)
	return errors.Join(r.registriesConf(sys, tmp), r.signatureDirs(sys, tmp), r.certDirs(sys, tmp))
}

// authFile chooses the user's auth.json. Without $XDG_RUNTIME_DIR, or with somebody
// else's, the library would take the one of the uid that it runs as: root's.
func (r *registries) authFile(sys *types.SystemContext) {
	if sys.AuthFilePath != "" {
		return
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && readable(filepath.Join(dir, "containers", "auth.json")) {
		return // the library looks there, then below the home
	}
	for _, name := range []string{".config/containers/auth.json", ".docker/config.json"} {
		if path := filepath.Join(r.opts.Home, name); exists(path) {
			sys.AuthFilePath = path
			return
		}
	}
	sys.AuthFilePath = filepath.Join(r.opts.Home, ".config/containers/auth.json")
}

// registriesConf replaces /etc/containers/registries.conf and registries.conf.d.
func (r *registries) registriesConf(sys *types.SystemContext, tmp string) error {
	own := filepath.Join(r.opts.Home, ".config", "containers")
	if exists(filepath.Join(own, "registries.conf")) && sys.SystemRegistriesConfPath == "" {
		return nil // then nothing of the machine's is read
	}
	if path := filepath.Join(etcDir, "containers", "registries.conf"); sys.SystemRegistriesConfPath == "" && !readable(path) {
		r.warnUnreadable(path)
		sys.SystemRegistriesConfPath = os.DevNull
	}
	host := filepath.Join(etcDir, "containers", "registries.conf.d")
	if sys.SystemRegistriesConfDirPath != "" || allReadable(host, ".conf") {
		return nil
	}
	r.warnUnreadable(host)
	sys.SystemRegistriesConfDirPath = filepath.Join(tmp, "registries.conf.d")
	// The first letter keeps the order: the user's come after the machine's.
	return errors.Join(copyReadable(host, sys.SystemRegistriesConfDirPath, "0-", ".conf", nil),
		copyReadable(filepath.Join(own, "registries.conf.d"), sys.SystemRegistriesConfDirPath, "1-", ".conf", nil))
}

// signatureDirs replaces /etc/containers/registries.d, which says where signatures
// are. Without them the policy refuses what it wants signed, so to leave out what is
// unreadable never lets an image pass.
func (r *registries) signatureDirs(sys *types.SystemContext, tmp string) error {
	if exists(filepath.Join(r.opts.Home, ".config/containers/registries.d")) {
		return nil
	}
	host := filepath.Join(etcDir, "containers", "registries.d")
	closed := !allReadable(host, ".yaml")
	files, _ := filepath.Glob(filepath.Join(host, "*.yaml"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil {
			_, cut := openLookasides(data)
			closed = closed || cut
		}
	}
	if !closed {
		return nil
	}
	r.warnUnreadable(host)
	sys.RegistriesDirPath = filepath.Join(tmp, "registries.d")
	return copyReadable(host, sys.RegistriesDirPath, "", ".yaml", func(data []byte) []byte {
		out, _ := openLookasides(data)
		return out
	})
}

// openLookasides removes directories that the user may not read from a file of
// registries.d, and reports whether there were any. What is no such file is returned
// as it is: the library reports the error.
func openLookasides(data []byte) (out []byte, cut bool) {
	var file struct {
		DefaultDocker map[string]any            `json:"default-docker,omitempty"`
		Docker        map[string]map[string]any `json:"docker,omitempty"`
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		return data, false
	}
	namespaces := []map[string]any{file.DefaultDocker}
	for _, ns := range file.Docker {
		namespaces = append(namespaces, ns)
	}
	for _, ns := range namespaces {
		for _, key := range []string{"lookaside", "sigstore"} {
			at, _ := ns[key].(string)
			if u, err := url.Parse(at); err == nil && u.Scheme == "file" && !readable(u.Path) {
				delete(ns, key)
				cut = true
			}
		}
	}
	if !cut {
		return data, false
	}
	out, err := yaml.Marshal(file)
	if err != nil {
		return data, false
	}
	return out, true
}

// certDirs replaces certs.d where a file of the machine's in it can't be read, as a
// key of root's.
func (r *registries) certDirs(sys *types.SystemContext, tmp string) error {
	if sys.DockerPerHostCertDirPath != "" {
		return nil
	}
	hostDirs := []string{filepath.Join(etcDir, "containers", "certs.d"), filepath.Join(etcDir, "docker", "certs.d")}
	closed := ""
	for _, dir := range hostDirs {
		registries, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, d := range registries {
			if !allReadable(d, "") {
				closed = d
			}
		}
	}
	if closed == "" {
		return nil
	}
	r.warnUnreadable(closed)
	sys.DockerPerHostCertDirPath = filepath.Join(tmp, "certs.d")
	for _, dir := range append([]string{filepath.Join(r.opts.Home, ".config/containers/certs.d")}, hostDirs...) {
		registries, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, d := range registries {
			to := filepath.Join(sys.DockerPerHostCertDirPath, filepath.Base(d))
			if exists(to) {
				continue // the first directory wins
			}
			if err := copyCerts(d, to); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyCerts copies the certificates of one registry. A client certificate without
// its key, or the other way round, is left out.
func copyCerts(from, to string) error {
	if err := copyReadable(from, to, "", "", nil); err != nil {
		return err
	}
	for _, pair := range [][2]string{{".cert", ".key"}, {".key", ".cert"}} {
		files, _ := filepath.Glob(filepath.Join(to, "*"+pair[0]))
		for _, f := range files {
			other := strings.TrimSuffix(f, pair[0]) + pair[1]
			if original := filepath.Join(from, filepath.Base(other)); exists(other) || !exists(original) {
				continue // complete, or the user's own mistake: the library reports it
			}
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyReadable copies the files of directory from that end in suffix and can be read
// into directory to, changed by edit if that is not nil.
func copyReadable(from, to, prefix, suffix string, edit func([]byte) []byte) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if errors.Is(err, fs.ErrPermission) || err == nil && e.IsDir() {
			continue
		} else if err != nil {
			return fmt.Errorf("copy configuration: %w", err)
		}
		if edit != nil {
			data = edit(data)
		}
		if err := os.WriteFile(filepath.Join(to, prefix+e.Name()), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// warnUnreadable logs, once for each path, that configuration is left out.
func (r *registries) warnUnreadable(path string) {
	if _, before := r.warned.LoadOrStore(path, true); !before {
		r.log.Warn("configuration of the machine left out: it is closed to this user", "path", path)
	}
}

// readable reports whether the user may open path, or look for it where it does not
// exist.
func readable(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return !errors.Is(err, fs.ErrPermission)
	}
	f.Close()
	return true
}

// allReadable reports whether the user may open dir and all files in it that end in
// suffix. A dir that does not exist has none.
func allReadable(dir, suffix string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return !errors.Is(err, fs.ErrPermission)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) && !readable(filepath.Join(dir, e.Name())) {
			return false
		}
	}
	return true
}

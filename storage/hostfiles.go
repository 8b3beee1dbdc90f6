package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"
	"sigs.k8s.io/yaml"
)

// The libraries read the configuration of the machine, below /etc and /usr/share,
// beside the user's, and fail on the first file there that they may not read. An
// administrator's file that is closed to users is not meant for them, so these
// functions show the libraries what is left without it. policy.json is the exception:
// see policy.

// etcDir is where the machine's configuration is.
const etcDir = "/etc"

// hostFiles points sys to copies below tmp of the configuration where the user may not
// read all of the machine's.
func (r *registries) hostFiles(sys *types.SystemContext, tmp string) error {
	r.authFile(sys)
	if err := r.plainFiles(sys); err != nil {
		return err
	}
	return errors.Join(r.registriesConf(sys, tmp), r.signatureDirs(sys, tmp), r.certDirs(sys, tmp))
}

// configHome is the user's own directory, as the libraries find it.
func (r *registries) configHome() string {
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "containers")
	}
	return filepath.Join(r.opts.Home, ".config", "containers")
}

// searchPaths returns where the libraries look for a file, the first place first: the
// user's, then the machine's. In a directory of drop-ins, a file hides those of the
// same name in the directories after it.
func searchPaths(file configfile.File) (configfile.SearchPaths, error) {
	file.UserId = userOutside()
	paths, err := configfile.GetSearchPaths(&file)
	if err != nil {
		return paths, fmt.Errorf("find %s: %w", file.Name, err)
	}
	return paths, nil
}

// isHost reports whether path belongs to the machine's configuration.
func (r *registries) isHost(path string) bool {
	return !strings.HasPrefix(path, r.configHome()+"/")
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
	own := filepath.Join(r.configHome(), "auth.json")
	for _, path := range []string{own, filepath.Join(r.opts.Home, ".docker/config.json")} {
		if exists(path) {
			sys.AuthFilePath = path
			return
		}
	}
	sys.AuthFilePath = own
}

// registriesConf replaces registries.conf and registries.conf.d.
func (r *registries) registriesConf(sys *types.SystemContext, tmp string) error {
	paths, err := searchPaths(configfile.File{Name: "registries", Extension: "conf", EnvironmentName: "CONTAINERS_REGISTRIES_CONF",
		CustomConfigFilePath: sys.SystemRegistriesConfPath, CustomConfigFileDropInDirectory: sys.SystemRegistriesConfDirPath})
	if err != nil {
		return err
	}
	if len(paths.MainFiles) > 1 { // a file that was named is read, or an error
		for i, path := range paths.MainFiles {
			if r.isHost(path) && !readable(path) {
				r.warnUnreadable(path)
				sys.SystemRegistriesConfPath = firstReadable(paths.MainFiles[i+1:], os.DevNull)
				break
			}
			if exists(path) {
				break
			}
		}
	}
	if sys.SystemRegistriesConfDirPath == "" && r.anyClosed(paths.DropInDirectories, ".conf") {
		sys.SystemRegistriesConfDirPath = filepath.Join(tmp, "registries.conf.d")
		return copyDropIns(paths.DropInDirectories, sys.SystemRegistriesConfDirPath, ".conf", nil)
	}
	return nil
}

// builtinLookaside is where signatures are, below the home, if registries.d does not say.
const builtinLookaside = ".local/share/containers/sigstore"

// signatureDirs replaces registries.d, which says where signatures are. Without them
// the policy refuses what it wants signed, so to leave out what is unreadable never
// lets an image pass.
func (r *registries) signatureDirs(sys *types.SystemContext, tmp string) error {
	paths, err := searchPaths(configfile.File{Name: "registries", Extension: "yaml", DoNotLoadMainFiles: true, DoNotUseExtensionForConfigName: true})
	if err != nil {
		return err
	}
	none := filepath.Join(tmp, "no-signatures")
	closed, named := r.anyClosed(paths.DropInDirectories, ".yaml"), false
	for _, dir := range paths.DropInDirectories {
		files, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			_, cut, names, err := openLookasides(data, none)
			if err != nil && !r.isHost(f) {
				return fmt.Errorf("%w: read %s: %w", ErrConfiguration, f, err)
			}
			if named = named || names; cut {
				r.warnUnreadable(f)
				closed = true
			}
		}
	}
	builtin := filepath.Join(r.opts.Home, builtinLookaside)
	hidden := !named && !readable(builtin)
	if hidden {
		r.warnUnreadable(builtin)
	}
	if !closed && !hidden {
		return nil
	}
	sys.RegistriesDirPath = filepath.Join(tmp, "registries.d")
	err = copyDropIns(paths.DropInDirectories, sys.RegistriesDirPath, ".yaml", func(_ string, data []byte) []byte {
		out, _, _, _ := openLookasides(data, none)
		return out
	})
	if err != nil || !hidden {
		return err
	}
	text := fmt.Sprintf("default-docker:\n  lookaside: %q\n", "file://"+none)
	return os.WriteFile(filepath.Join(sys.RegistriesDirPath, "subpod-closed.yaml"), []byte(text), 0o600)
}

// anyClosed reports whether the user may not read all files that end in suffix in
// those of dirs that are the machine's.
func (r *registries) anyClosed(dirs []string, suffix string) bool {
	closed := false
	for _, dir := range dirs {
		if r.isHost(dir) && !allReadable(dir, suffix) {
			r.warnUnreadable(dir)
			closed = true
		}
	}
	return closed
}

// copyDropIns copies what is readable in dirs to the directory to, so that a file of
// the first hides those of the same name in the others.
func copyDropIns(dirs []string, to, suffix string, edit func(from string, data []byte) []byte) error {
	for _, dir := range slices.Backward(dirs) {
		if err := copyReadable(dir, to, suffix, edit); err != nil {
			return err
		}
	}
	return nil
}

// openLookasides puts the directory none in the place of those that the user may not read
// in a file of registries.d. It reports whether there were any, and whether the file says
// where the signatures of all registries are. What is no such file is returned as it is:
// the library reports the error.
func openLookasides(data []byte, none string) (out []byte, cut, named bool, err error) {
	var file struct {
		DefaultDocker map[string]any            `json:"default-docker,omitempty"`
		Docker        map[string]map[string]any `json:"docker,omitempty"`
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		return data, false, false, err
	}
	namespaces := []map[string]any{file.DefaultDocker}
	for _, ns := range file.Docker {
		namespaces = append(namespaces, ns)
	}
	for _, ns := range namespaces {
		for _, key := range []string{"lookaside", "sigstore"} {
			at, _ := ns[key].(string)
			if u, err := url.Parse(at); err == nil && u.Scheme == "file" && !readable(u.Path) {
				ns[key] = "file://" + none
				cut = true
			}
		}
	}
	named = len(file.DefaultDocker) > 0
	if !cut {
		return data, false, named, nil
	}
	if out, err = yaml.Marshal(file); err != nil {
		return data, false, named, err
	}
	return out, true, named, nil
}

// certDirs replaces certs.d where a file of the machine's in it can't be read, as a
// key of root's.
func (r *registries) certDirs(sys *types.SystemContext, tmp string) error {
	if sys.DockerPerHostCertDirPath != "" {
		return nil
	}
	paths, err := searchPaths(configfile.File{Name: "certs", Extension: "d", DoNotLoadMainFiles: true, DoNotUseExtensionForConfigName: true})
	if err != nil {
		return err
	}
	dirs := append(paths.DropInDirectories, filepath.Join(etcDir, "docker", "certs.d"))
	closed := false
	for _, dir := range dirs {
		registries, _ := filepath.Glob(filepath.Join(dir, "*"))
		closed = r.anyClosed(registries, "") || closed
	}
	if !closed {
		return nil
	}
	sys.DockerPerHostCertDirPath = filepath.Join(tmp, "certs.d")
	for _, dir := range dirs {
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
	if err := copyReadable(from, to, "", nil); err != nil {
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
func copyReadable(from, to, suffix string, edit func(from string, data []byte) []byte) error {
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
		path := filepath.Join(from, e.Name())
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrPermission) || err == nil && e.IsDir() {
			continue
		} else if err != nil {
			return fmt.Errorf("copy configuration: %w", err)
		}
		if edit != nil {
			data = edit(path, data)
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// warnUnreadable logs, once for each path, that configuration is left out.
func (r *registries) warnUnreadable(path string) {
	if _, before := r.warned.LoadOrStore(path, true); !before {
		r.log.Warn("configuration left out: it is closed to this user", "path", path)
	}
}

// readable reports whether the user may open path, or look for it where it does not
// exist.
func readable(path string) bool {
	return openable(path) == nil
}

// firstReadable returns the first of paths that exists and can be read, or otherwise.
func firstReadable(paths []string, otherwise string) string {
	for _, p := range paths {
		if exists(p) && readable(p) {
			return p
		}
	}
	return otherwise
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

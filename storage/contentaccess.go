package storage

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.podman.io/storage/pkg/configfile"

	"github.com/subpod/subpod/storage/internal/fetch"
)

// writable are the directories and files that the content process may change: those of
// containers/storage, its own temporary ones and the library's cache. Of the server's own
// it sees nothing: the server follows what is there (blobs, records, marks). Only in the
// directories of layers, and its temporary one, it may make everything: plain is where the
// library in the server reads files by their names, and finds no FIFO, device or link.
func (t *transfer) writable() (all, plain []string, err error) {
	l := t.im.store
	if err := os.MkdirAll(l.dirs.cache(), 0o700); err != nil {
		return nil, nil, err
	}
	all, plain, err = libraryFiles(l)
	return append(all, t.tmp), append(plain, l.dirs.cache()), err
}

// libraryFiles are the directories and files of containers/storage: those of layers, in
// which there is everything, and others.
func libraryFiles(l *layerStore) (all, plain []string, err error) {
	entries, err := os.ReadDir(l.opts.Root)
	if err != nil {
		return nil, nil, err
	}
	plain = []string{l.opts.RunRoot}
	for _, e := range entries {
		switch path := filepath.Join(l.opts.Root, e.Name()); {
		case path == l.dirs.own || e.Type()&fs.ModeSymlink != 0:
		case path == l.dirs.overlay() || e.Name() == DriverVFS:
			all = append(all, path)
		default:
			plain = append(plain, path)
		}
	}
	return all, plain, nil
}

// signatureServer finds the servers of signatures in files of registries.d.
var signatureServer = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?m)^[^#\n]*\b(?:lookaside|sigstore)\s*:\s*["']?(https?://[^\s"'#]+)`)
})

// signatureServers returns the servers, HOST:PORT, that registries.d names for signatures.
func (r *registries) signatureServers() ([]string, error) {
	files, err := r.signatureFiles()
	if err != nil {
		return nil, err
	}
	var servers []string
	for _, file := range files {
		data, _ := os.ReadFile(file) // the library complains of those that it needs
		for _, m := range signatureServer().FindAllSubmatch(data, -1) {
			if u, err := url.Parse(string(m[1])); err == nil {
				servers = append(servers, fetch.HostPort(u))
			}
		}
	}
	return servers, nil
}

// signatureFiles returns the files of registries.d.
func (r *registries) signatureFiles() ([]string, error) {
	places, err := searchPaths(configfile.File{Name: "registries", Extension: "yaml", DoNotLoadMainFiles: true, DoNotUseExtensionForConfigName: true})
	if err != nil {
		return nil, err
	}
	var all []string
	for _, dir := range places.DropInDirectories {
		files, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
		all = append(all, files...)
	}
	return all, nil
}

// files are those that every content process may read: the machine's and the user's
// configuration of registries, what it names, and the system's certificates. The
// credentials that may lie beside it are not among them.
func (r *registries) files() ([]string, error) {
	o := r.opts
	usual := filepath.Join(o.Home, ".config", "containers")
	paths := []string{"/etc", "/proc", o.RegistriesConf, o.RegistriesConfDir, o.PolicyJSON, o.CertsDir,
		os.Getenv("SSL_CERT_FILE"), os.Getenv("SSL_CERT_DIR")}
	for _, v := range os.Environ() {
		if _, value, _ := strings.Cut(v, "="); strings.HasPrefix(v, "CONTAINERS_") && filepath.IsAbs(value) {
			paths = append(paths, value)
		}
	}
	for _, path := range linkedFiles {
		// The directory of a resolv.conf in /run: the file is replaced now and then.
		if target, err := filepath.EvalSymlinks(path); err == nil && target != path {
			paths = append(paths, target, filepath.Dir(target))
		}
	}
	for _, dir := range []string{r.configHome(), usual} {
		paths = append(append(paths, entries(dir)...), targetsBelow(dir)...)
	}
	paths = append(paths, o.AdditionalStores...)
	policies, err := r.policyPaths()
	if err != nil {
		return nil, err
	}
	if o.PolicyJSON != "" {
		policies = []string{o.PolicyJSON}
	}
	paths = append(paths, namedFiles(firstFile(policies...))...)
	signatures, err := r.signatureFiles()
	if err != nil {
		return nil, err
	}
	for _, f := range signatures {
		paths = append(paths, namedFiles(f)...)
	}
	return slices.DeleteFunc(existing(paths...), r.isCredentials), nil
}

// entries returns what there is in a directory of configuration: each by its name, since
// Landlock cannot except a file of a directory.
func entries(dir string) []string {
	found, _ := os.ReadDir(dir)
	var paths []string
	for _, e := range found {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths
}

// isCredentials reports whether path is a file of credentials, or leads to one.
func (r *registries) isCredentials(path string) bool {
	real := followed(path)
	for _, file := range []string{filepath.Join(r.configHome(), "auth.json"), filepath.Join(r.opts.Home, ".config/containers/auth.json"),
		filepath.Join(r.opts.Home, ".docker/config.json"), r.opts.AuthFile} {
		if file != "" && followed(file) == real {
			return true
		}
	}
	return false
}

// followed returns what a path leads to, as far as that is there.
func followed(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return filepath.Clean(path)
}

// linkedFiles are files of the system that on some lie elsewhere, by a link.
var linkedFiles = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl/certs", "/etc/ssl/certs/ca-certificates.crt",
	"/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem", "/etc/pki/tls/certs", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"}

// targetsBelow returns what symbolic links below a directory of configuration lead to.
func targetsBelow(dir string) []string {
	var targets []string
	seen := 0
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if seen++; err != nil || seen > 1000 {
			return filepath.SkipDir
		}
		if d.Type()&fs.ModeSymlink != 0 {
			if target, err := filepath.EvalSymlinks(path); err == nil {
				targets = append(targets, target)
			}
		}
		return nil
	})
	return targets
}

// absolutePath finds paths in policy.json ("keyPath": "/…") and in registries.d
// (lookaside: file:///…).
var absolutePath = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?:"|file://)(/[^"\s]+)`)
})

// namedFiles returns the files and directories that a file of configuration names.
func namedFiles(path string) []string {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var paths []string
	for _, m := range absolutePath().FindAllSubmatch(data, -1) {
		paths = append(paths, string(m[1]))
	}
	return paths
}

// contentVariables are the environment variables that a content process gets.
var contentVariables = []string{"HOME", "LANG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "GODEBUG",
	"STORAGE_DRIVER", "STORAGE_OPTS",
	// Tests find processes by this.
	"SUBPOD_TEST_DIR"}

// contentEnv returns the environment of content processes.
func (l *layerStore) contentEnv(tmp string) []string {
	// The libraries decompress by programs where they find them: those that may be run.
	programs := slices.DeleteFunc(filepath.SplitList(os.Getenv("PATH")), func(dir string) bool {
		return !slices.ContainsFunc(systemDirs, func(system string) bool { return strings.HasPrefix(dir+"/", system+"/") })
	})
	// It lives for seconds: what it no longer needs may wait a little.
	env := []string{"TMPDIR=" + tmp, "GOGC=400", "GOMEMLIMIT=" + strconv.FormatInt(l.opts.Limits.Memory/8*7, 10),
		"PATH=" + strings.Join(programs, string(filepath.ListSeparator))}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if slices.Contains(contentVariables, name) || strings.HasPrefix(strings.TrimPrefix(name, "_"), "CONTAINERS_") {
			env = append(env, v)
		}
	}
	return env
}

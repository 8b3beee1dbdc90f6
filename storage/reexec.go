package storage

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"
)

// Dispatch runs what this binary was re-executed for, and exits; in any other process it
// returns at once. Call it first thing in main, and in TestMain of tests that pull.
//
// A pull or load runs one content process, and in it containers/storage one helper per
// new layer ("storage-untar": it enters the layer's directory by chroot, so that no
// symlink of a hostile layer leads outside). The helper can't be avoided through the
// library's interface; it costs the start of this binary, once per layer.
func Dispatch() {
	if name := os.Getenv(fusermountEnv); name != "" && os.Args[0] == name {
		os.Exit(fusermount())
	}
	filterLayer()
	if reexec.Init() {
		os.Exit(0)
	}
	if os.Args[0] == contentName {
		os.Exit(runContentProcess())
	}
}

// userOutside returns the user's ID as seen outside of the user namespace, where it
// is 0. The libraries take root's files and directories for ours without it.
func userOutside() int {
	uid, ok := rootOf(ownRange("uid"))
	if !ok {
		return os.Geteuid()
	}
	return int(uid)
}

// homeOf returns $HOME or, where that is not set, the home of the user with this ID
// outside of the user namespace; "/nonexistent" for one without.
func homeOf(uid int) string {
	if home := os.Getenv("HOME"); home != "" {
		return home
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil && filepath.IsAbs(u.HomeDir) {
		return u.HomeDir
	}
	return "/nonexistent"
}

// setRootlessMarkers sets the environment variables by which containers/* knows that uid 0 here is an unprivileged user in a user
// namespace, and where that user's home is. It keeps the user's storage.conf,
// which is about another store, from being applied to ours.
func setRootlessMarkers(uid int, home string) error {
	// The libraries would take "" for the directory that they run in.
	if dir, ok := os.LookupEnv("XDG_CONFIG_HOME"); ok && !filepath.IsAbs(dir) {
		if err := os.Unsetenv("XDG_CONFIG_HOME"); err != nil {
			return err
		}
	}
	// $TMPDIR may be left from root's session: the libraries make directories there.
	if dir := os.Getenv("TMPDIR"); dir != "" && unix.Access(dir, unix.W_OK|unix.X_OK) != nil {
		if err := os.Unsetenv("TMPDIR"); err != nil {
			return err
		}
	}
	for k, v := range map[string]string{
		"_CONTAINERS_USERNS_CONFIGURED":    "done",
		"_CONTAINERS_ROOTLESS_UID":         strconv.Itoa(uid),
		"CONTAINERS_STORAGE_CONF":          os.DevNull,
		"CONTAINERS_STORAGE_CONF_OVERRIDE": "",
		"STORAGE_DRIVER":                   "overlay", // ours is given explicitly; "" makes the library warn
		"STORAGE_OPTS":                     "",
		"HOME":                             home,
	} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	return nil
}

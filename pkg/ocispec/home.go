package ocispec

import (
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// noHome is the home of a user without an entry in passwd, as with runc, Docker, Podman.
const noHome = "/"

// home sets HOME, unless the image or the request does: to the home of the user's entry
// in the passwd that the process will see, else to "/". OCI runtimes would do it, but
// older ones (crun 1.8) leave HOME unset where there is no entry, and hang on a FIFO.
func (b *builder) home() error {
	if slices.ContainsFunc(b.spec.Process.Env, func(v string) bool { return strings.HasPrefix(v, "HOME=") }) {
		return nil
	}
	home, err := b.homeOf(b.spec.Process.User.UID)
	if err != nil {
		b.warn("HOME is %s: %v", noHome, err)
	}
	b.spec.Process.Env = append(b.spec.Process.Env, "HOME="+home)
	return nil
}

// homeOf returns the home of the first entry with this user ID.
func (b *builder) homeOf(uid uint32) (string, error) {
	home := noHome
	err := b.readPasswd(func(r io.Reader) error {
		users, err := user.ParsePasswdFilter(passwdLines(r), firstOf(func(u user.User) bool { return int64(u.Uid) == int64(uid) && u.Name != "" }))
		if err == nil && len(users) > 0 && users[0].Home != "" && carriable("", users[0].Home) == nil {
			home = users[0].Home
		}
		return err
	})
	return home, err
}

// readPasswd parses the container's /etc/passwd: the image's, or that of the mount over
// it.
func (b *builder) readPasswd(parse func(io.Reader) error) error {
	const passwd = "/etc/passwd"
	mounts := slices.Clone(b.spec.Mounts)
	sortMounts(mounts)
	for _, m := range slices.Backward(mounts) {
		at := path.Clean(m.Destination)
		switch {
		case at == passwd && isBind(m):
			return parseAccountsAt(m.Source, parse)
		case at == "/etc" && isBind(m):
			return readInRoot(m.Source, "passwd", parse)
		case at == passwd || at == "/etc":
			return nil // an empty file system
		}
	}
	return readInRoot(b.Rootfs, strings.TrimPrefix(passwd, "/"), parse)
}

func isBind(m specs.Mount) bool { return m.Type == typeBind }

// parseAccountsAt parses the source of a mount. It is looked at before it is opened: the
// open of a device can do something.
func parseAccountsAt(source string, parse func(io.Reader) error) error {
	fd, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", source, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", source, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New(filepath.Base(source) + " is not a regular file")
	}
	open, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", source, err)
	}
	return parseAccounts(open, filepath.Base(source), parse)
}

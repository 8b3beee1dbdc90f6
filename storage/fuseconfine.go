package storage

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/landlock"
)

// fuse-overlayfs reads what images and containers have made, as root of the node.
// It gets its mount as a descriptor, so it needs no mount(2), and can be left the
// directories of its overlay, those of the system's programs and nothing else.
//
// Version 1 takes the descriptor as the place to mount on. Version 2, in Rust (fuser), mounts
// by itself. It may not, and runs fusermount3 then, which is to mount and to send it the
// descriptor: that is this binary.

const (
	fuseDevice     = 3                 // the descriptor of its end of the mount
	fusermountEnv  = "FUSERMOUNT_PATH" // what fuser runs
	fusermountComm = "_FUSE_COMMFD"    // fusermount's protocol: the socket that a descriptor is sent through
)

// fusermount stands in for fusermount3 and returns the exit code: 1 when it is asked for
// something else than a mount.
func fusermount() int {
	comm, err := strconv.Atoi(os.Getenv(fusermountComm))
	if err == nil {
		err = unix.Sendmsg(comm, []byte{0}, unix.UnixRights(fuseDevice), nil, 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "subpod: hand over the mount:", err)
		return 1
	}
	return 0
}

// fuseCapabilities are what fuse-overlayfs needs of root's: files of all owners.
var fuseCapabilities = []uint{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETFCAP}

// fuseRefused are the system calls that it must not make. Its option nfs_filehandles needs
// those for handles.
var fuseRefused = slices.DeleteFunc(slices.Clone(refused), func(call uint32) bool {
	return call == unix.SYS_OPEN_BY_HANDLE_AT || call == unix.SYS_NAME_TO_HANDLE_AT
})

// fuseRules are what fuse-overlayfs may do: read the layers, and change the upper
// directory. Device nodes are among what it makes there (whiteouts). self is this binary.
func (m overlayMount) fuseRules(program, self string) landlock.Rules {
	at := func(path string) string {
		if path == "" || filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(m.base, path)
	}
	lowers := make([]string, 0, len(m.lowers))
	for _, lower := range m.lowers {
		lowers = append(lowers, at(lower))
	}
	real := program
	if target, err := filepath.EvalSymlinks(program); err == nil {
		real = target
	}
	prefix := filepath.Dir(filepath.Dir(real)) // one installed by itself has its libraries there
	programs := append(systemDirs[:len(systemDirs):len(systemDirs)], self, program, filepath.Join(prefix, "lib"), filepath.Join(prefix, "lib64"))
	return landlock.Rules{
		Files: []landlock.Files{
			{Access: landlock.Read, Paths: lowers},
			{Access: landlock.Change, Paths: existing(at(m.upper), at(m.work))},
			{Access: landlock.Read | landlock.Execute, Paths: programs},
			// The dynamic linker's, the IDs of files that have none in the node, and the size of
			// pipes: without it, libfuse copies what it reads, through buffers of its own.
			{Access: landlock.Read, Paths: []string{"/etc/ld.so.cache", "/etc/ld.so.preload", "/proc/sys/kernel", "/proc/sys/fs/pipe-max-size"}},
			{Access: landlock.Read | landlock.Write, Paths: []string{"/dev/null"}},
			// Version 2 opens the device before it may not mount, and for each of its threads.
			{Access: landlock.Read | landlock.Write | landlock.Control, Paths: []string{"/dev/fuse"}},
		},
		NoListen: true, NoConnect: true, Scoped: true,
	}
}

// startUnder starts cmd under rules, with fuseCapabilities and without namespaces, mounts
// and sockets of its own, from a thread that ends after that: cmd has no death signal.
func startUnder(rules landlock.Rules, cmd *exec.Cmd) error {
	tryPidfds()
	result := make(chan error)
	go onOwnThread(func() {
		if err := confineThread(rules, fuseCapabilities, fuseRefused, false); err != nil {
			result <- fmt.Errorf("confine %s: %w", cmd.Path, err)
			return
		}
		result <- cmd.Start()
	})
	return <-result
}

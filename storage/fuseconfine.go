package storage

import (
	"fmt"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/landlock"
)

// fuse-overlayfs reads what images and containers have made, as root of the node, in C.
// It gets its mount as a descriptor, so it needs no mount(2), and can be left the
// directories of its overlay, those of the system's programs and nothing else.

// fuseRules are what fuse-overlayfs may do: read the layers, and change the upper
// directory. Device nodes are among what it makes there (whiteouts).
func (m overlayMount) fuseRules(program string) landlock.Rules {
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
	programs := append(systemDirs[:len(systemDirs):len(systemDirs)], program, filepath.Join(prefix, "lib"), filepath.Join(prefix, "lib64"))
	return landlock.Rules{
		Files: []landlock.Files{
			{Access: landlock.Read, Paths: lowers},
			{Access: landlock.Change, Paths: existing(at(m.upper), at(m.work))},
			{Access: landlock.Read | landlock.Execute, Paths: programs},
			// The dynamic linker's, the IDs of files that have none in the node, and the size of
			// pipes: without it, libfuse copies what it reads, through buffers of its own.
			{Access: landlock.Read, Paths: []string{"/etc/ld.so.cache", "/etc/ld.so.preload", "/proc/sys/kernel", "/proc/sys/fs/pipe-max-size"}},
			{Access: landlock.Read | landlock.Write, Paths: []string{"/dev/null"}},
		},
		NoListen: true, NoConnect: true, Scoped: true,
	}
}

// startUnder starts cmd under rules, from a thread of its own that ends after that: cmd
// has no death signal.
func startUnder(rules landlock.Rules, cmd *exec.Cmd) error {
	result := make(chan error)
	go onOwnThread(func() {
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			err = rules.Enter()
		}
		if err != nil {
			result <- fmt.Errorf("confine %s: %w", cmd.Path, err)
			return
		}
		result <- cmd.Start()
	})
	return <-result
}

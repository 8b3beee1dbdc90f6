package storage

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/landlock"
	"github.com/subpod/subpod/pkg/openat2"
)

// afterVet is called before layers that were looked at are deleted, for tests.
var afterVet = func() {}

// confined has do, which deletes layers, change nothing but the files of
// containers/storage, where the kernel has Landlock: the library removes what files in a
// layer's directory name, and a content process that was taken over may write those after
// vetLayer has looked at them. It runs on a thread of its own, which ends with it.
func confined(l *layerStore, do func() error) error {
	afterVet()
	all, plain, err := libraryFiles(l)
	if err != nil {
		return fmt.Errorf("delete a layer: %w", err)
	}
	rules := landlock.Rules{Files: []landlock.Files{
		{Access: landlock.Read | landlock.Execute, Paths: []string{"/"}},
		{Access: landlock.Read | landlock.Write, Paths: []string{"/dev/null"}},
		{Access: landlock.Change, Paths: all},
		{Access: landlock.ChangePlain, Paths: plain},
	}}
	result := make(chan error)
	go onOwnThread(func() {
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			err = rules.Enter()
		}
		if err != nil {
			err = fmt.Errorf("delete a layer: confine the thread: %w", err)
		} else {
			err = do()
		}
		result <- err
	})
	for {
		select {
		case err := <-result:
			return err
		case <-time.After(fifoWait):
			l.openFIFOs()
		}
	}
}

// fifoWait is how long a deletion takes before FIFOs are looked for that it may wait for.
const fifoWait = 2 * time.Second

// vettedNames are the files of a layer's directory that the library reads to delete it.
var vettedNames = []string{"link", "additionallayer"}

// openFIFOs lets a deletion go on that reads a FIFO which a content process has put in the
// place of such a file after vetLayer has looked at it: it reads nothing.
func (l *layerStore) openFIFOs() {
	dir, err := os.Open(l.dirs.overlay())
	if err != nil {
		return
	}
	defer dir.Close()
	ids, _ := dir.Readdirnames(-1)
	for _, id := range ids {
		for _, name := range vettedNames {
			fd, err := openat2.NoLinks(int(dir.Fd()), filepath.Join(id, name), unix.O_WRONLY|unix.O_NONBLOCK)
			if err == nil {
				unix.Close(fd)
			}
		}
	}
}

package storage

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/landlock"
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
	return <-result
}

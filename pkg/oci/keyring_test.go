package oci

import (
	"errors"
	goruntime "runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// More session keyrings than the kernel lets one user have are all different, and their
// threads have their capabilities still.
func TestManyKeyrings(t *testing.T) {
	const count = 450
	var mu sync.Mutex
	var joined, all sync.WaitGroup
	rings, failed := map[int]bool{}, []error{}
	release := make(chan struct{})
	joined.Add(count)
	for range count {
		all.Go(func() {
			goruntime.LockOSThread() // never unlocked: the thread, and its keyring, end with this
			err := joinKeyring()
			ring, ringErr := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
			err = errors.Join(err, ringErr)
			if unix.Getuid() != 0 {
				err = errors.Join(err, errors.New("the thread has not become root again"))
			}
			err = errors.Join(err, unix.Sethostname([]byte("capable")))
			mu.Lock()
			rings[ring] = true
			if err != nil {
				failed = append(failed, err)
			}
			mu.Unlock()
			joined.Done()
			<-release
		})
	}
	joined.Wait()
	close(release)
	all.Wait()
	if len(failed) > 0 {
		t.Errorf("%d of %d: %v", len(failed), count, failed[0])
	}
	if len(rings) != count {
		t.Errorf("%d threads have %d keyrings", count, len(rings))
	}
}

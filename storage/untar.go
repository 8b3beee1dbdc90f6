package storage

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// untarHelper is the name under which containers/storage re-executes this program to
// unpack a layer, and lowersVariable the environment variable that tells it which layers
// are below.
const (
	untarHelper    = "storage-untar"
	lowersVariable = "SUBPOD_LOWERS"
)

// rootXattr marks the directory of a layer that has an entry for the root directory.
const rootXattr = "user.subpod.root"

// unpackLock guards lowersVariable, which is the whole process's, from when it is set
// until the helper that it is meant for reads what it names.
var unpackLock sync.Mutex

// announceLowers tells the helper that unpacks a layer on parent next what is below it,
// through a named pipe: who opens that has its environment. With rawNames no directory is
// to have a name that is not UTF-8. end releases what is left.
func (s *holdingStore) announceLowers(id, parent string, rawNames bool) (end func(), err error) {
	list, err := s.lowersOf(parent)
	if err != nil {
		return nil, err
	}
	if rawNames {
		list = rawNamesLine + "\n" + list
	}
	pipe := filepath.Join(s.tmp, "lowers-"+id)
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		return nil, fmt.Errorf("make %s: %w", pipe, err)
	}
	unpackLock.Lock()
	err = os.Setenv(lowersVariable, pipe)
	opened := make(chan struct{})
	go func() {
		w, err := os.OpenFile(pipe, os.O_WRONLY, 0)
		os.Unsetenv(lowersVariable)
		unpackLock.Unlock()
		close(opened)
		if err != nil {
			return
		}
		defer w.Close()
		list := list
		if stagingUnlocked() {
			list = unlockedLine + "\n"
		}
		_, _ = w.WriteString(list) // a helper that does not read it all has failed
	}()
	return func() {
		// In the place of a helper that was never started.
		if r, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			defer r.Close()
		}
		<-opened
		os.Remove(pipe)
	}, err
}

// lowersOf returns the directories of a layer and of those below it, a line for each.
func (s *holdingStore) lowersOf(id string) (string, error) {
	if id == "" {
		return "", nil
	}
	s.mu.Lock()
	list, known := s.lowers[id]
	s.mu.Unlock()
	if known {
		return list, nil
	}
	layer, err := s.Store.Layer(id)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", id, err)
	}
	below, err := s.lowersOf(layer.Parent)
	if err != nil {
		return "", err
	}
	list = s.layers.diffDir(id) + "\n" + below
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lowers == nil {
		s.lowers = map[string]string{}
	}
	delete(s.lowers, layer.Parent) // only the uppermost has a next one
	s.lowers[id] = list
	return list, nil
}

// filterLayer puts a layerFilter before the input of the helper that unpacks a layer. It
// does nothing in other processes.
func filterLayer() {
	list := os.Getenv(lowersVariable)
	if list == "" || os.Args[0] != untarHelper || len(os.Args) < 2 {
		return
	}
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) // the end of the input alone would look like that of the layer
	}
	below, err := readLowers(list)
	if err != nil {
		fail(err)
	}
	at := os.Args[1]
	if len(os.Args) > 2 {
		at = filepath.Join(os.Args[2], os.Args[1])
	}
	root, err := os.Open(at)
	if err != nil {
		fail(err)
	}
	r, w, err := largePipe()
	if err != nil {
		fail(err)
	}
	in := os.Stdin
	_, _ = unix.FcntlInt(in.Fd(), unix.F_SETPIPE_SZ, pipeSize)
	f := newLayerFilter(in, w, below, func() error {
		err := unix.Fsetxattr(int(root.Fd()), rootXattr, []byte("y"), 0)
		if err == unix.ENOTSUP {
			return nil
		}
		return err
	})
	f.fits = func(h *tar.Header) error { return attributesFit(root, h) }
	f.splice = func(n int64) error { return splice(w, in, n) }
	os.Stdin = r
	go func() {
		if err := f.run(); err != nil {
			fail(err)
		}
		w.Close()
	}()
}

package tree

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// maxGenerated bounds a file whose size is not known before it has been read.
const maxGenerated = 16 << 20

// openRegular opens a regular file, and does not wait for what has taken its place.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file any more", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// contentOf returns the content of a file, and corrects its size. The kernel makes the
// files of /proc and /sys while they are read, and gives them the size 0, or that of a
// page: they are read first.
func contentOf(f *os.File, size *int64) (io.Reader, error) {
	if *size > 0 && !generated(f) {
		return f, nil
	}
	b, err := io.ReadAll(io.LimitReader(f, maxGenerated+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxGenerated {
		return nil, fmt.Errorf("%s is made by the kernel, and longer than %d bytes", f.Name(), maxGenerated)
	}
	*size = int64(len(b))
	return bytes.NewReader(b), nil
}

// pseudo are the file systems whose files have no size of their own.
var pseudo = []int64{
	unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
	unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC, unix.BINFMTFS_MAGIC,
}

func generated(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && slices.Contains(pseudo, int64(st.Type))
}

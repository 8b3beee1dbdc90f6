package storage

import (
	"archive/tar"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// netRaw is a file capability (capabilities(7), version 2): net_raw, permitted and
// effective.
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// accessList is user::rw-, user:1001:r--, group::r--, mask::r--, other::--- (acl(5)).
const accessList = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe9\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// oddNames are names of files that people have.
var oddNames = []string{
	"new\nline", " space ", "-dash", `back\slash`, strings.Repeat("L", 255), "ü", "e\u0301", "\U0001F600", "latin\xe9", "col:on", "com,ma",
	"per%cent", `quo'te"s`, "\x01ctl", "..dots", "...", ".w", "wh.x",
}

// TestLayerAttributes: what a layer says of its files arrives in containers, with every
// driver.
func TestLayerAttributes(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative} {
		t.Run(driver, func(t *testing.T) {
			s := openStore(t, testOptions(t, t.TempDir(), driver))
			img := build(t, imageSpec{tars: [][]byte{attributes(t), attributesOfGNU(t), sparseFile(t)}})
			root, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: loadInto(t, s, "localhost/attributes:v1", img)})
			if err != nil {
				t.Fatal(err)
			}
			checkModes(t, root.Path)
			checkTimes(t, root.Path)
			checkXattrs(t, root.Path)
			checkNames(t, root.Path)
			var a, b unix.Stat_t
			if err := errorsOf(unix.Lstat(root.Path+"/bin/map", &a), unix.Lstat(root.Path+"/bin/not/in/the/archive", &b)); err != nil || a.Ino != b.Ino || a.Nlink < 2 {
				t.Errorf("hard links: %v, inodes %d and %d, %d links", err, a.Ino, b.Ino, a.Nlink)
			}
			sparse, err := os.ReadFile(root.Path + "/sparse")
			if err != nil || len(sparse) != 8<<20+4 || strings.Trim(string(sparse[:8<<20]), "\x00") != "" || string(sparse[8<<20:]) != "tail" {
				t.Errorf("the sparse file: %v, %d bytes", err, len(sparse))
			}
		})
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// attributes is a layer with entries of the PAX format.
func attributes(t *testing.T) []byte {
	t.Helper()
	pax := func(name string, records map[string]string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o640, PAXRecords: records, Format: tar.FormatPAX}
	}
	at := func(name string, sec, nsec int64) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(sec, nsec), Format: tar.FormatPAX}
	}
	mode := func(name string, typeflag byte, mode int64) *tar.Header {
		return &tar.Header{Name: name, Typeflag: typeflag, Mode: mode, Uid: 7, Gid: 8}
	}
	return tarEntries(t,
		"m/", mode("m/suid", tar.TypeReg, 0o4755), mode("m/sgid", tar.TypeReg, 0o2755), mode("m/none", tar.TypeReg, 0),
		mode("m/dir/", tar.TypeDir, 0o3775), mode("m/fifo", tar.TypeFifo, 0o600), mode("m/ro/", tar.TypeDir, 0o555), "m/ro/file=in a directory without write permission",
		"t/", at("t/epoch", 0, 0), at("t/nano", 1700000000, 123456789), at("t/far", 4102444800, 0), at("t/before", -1000, 0),
		"x/", pax("x/user", map[string]string{paxXattr + "user.note": "hello", paxXattr + "user.empty": "", "comment": "c"}),
		pax("x/caps", map[string]string{paxXattr + "security.capability": netRaw}),
		pax("x/acl", map[string]string{paxXattr + "system.posix_acl_access": accessList}),
		// What nobody sets without root, or this machine does not know, is left out.
		pax("x/label", map[string]string{paxXattr + "security.selinux": "system_u:object_r:bin_t:s0\x00", paxXattr + "trusted.foo": "bar", paxXattr + "btrfs.compression": "zstd"}),
		"bin/map=m", "bin/not/in/the/archive=>bin/map", "bin/"+strings.Repeat("l", 200)+"=>bin/map",
	)
}

// attributesOfGNU is a layer with odd names: those of PAX are UTF-8.
func attributesOfGNU(t *testing.T) []byte {
	t.Helper()
	entries := []any{"n/"}
	for _, name := range oddNames {
		entries = append(entries, &tar.Header{Name: "n/" + name, Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatGNU})
	}
	return tarEntries(t, append(entries, &tar.Header{Name: "n/link", Linkname: "latin\xe9", Typeflag: tar.TypeSymlink, Format: tar.FormatGNU})...)
}

// sparseFile is a layer of GNU tar with a file that is a hole but for its end.
func sparseFile(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("tail"), 8<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "-C", dir, "--owner=0", "--group=0", "--format=gnu", "-S", "-cf", "-", "sparse").Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func checkModes(t *testing.T, root string) {
	t.Helper()
	for name, want := range map[string]uint32{
		"suid": unix.S_IFREG | 0o4755, "sgid": unix.S_IFREG | 0o2755, "none": unix.S_IFREG, "dir": unix.S_IFDIR | 0o3775, "fifo": unix.S_IFIFO | 0o600, "ro": unix.S_IFDIR | 0o555,
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, "m", name), &st); err != nil || st.Mode != want || st.Uid != 7 || st.Gid != 8 {
			t.Errorf("%s: %v, mode %o of %d:%d, want %o of 7:8", name, err, st.Mode, st.Uid, st.Gid, want)
		}
	}
}

func checkTimes(t *testing.T, root string) {
	t.Helper()
	for name, want := range map[string]time.Time{
		"epoch": time.Unix(0, 0), "nano": time.Unix(1700000000, 123456789), "far": time.Unix(4102444800, 0),
		"before": time.Unix(0, 0), // as Docker and containerd
	} {
		info, err := os.Lstat(filepath.Join(root, "t", name))
		if err != nil || !info.ModTime().Equal(want) {
			t.Errorf("%s: %v, %v, want %v", name, err, info.ModTime(), want)
		}
	}
}

func checkXattrs(t *testing.T, root string) {
	t.Helper()
	for name, attrs := range map[string]map[string]string{
		"user": {"user.note": "hello", "user.empty": ""}, "caps": {"security.capability": netRaw}, "acl": {"system.posix_acl_access": accessList}, "label": {},
	} {
		for attr, want := range attrs {
			b := make([]byte, 256)
			n, err := unix.Lgetxattr(filepath.Join(root, "x", name), attr, b)
			if err != nil || string(b[:max(n, 0)]) != want {
				t.Errorf("%s: %s is %q, %v, want %q", name, attr, b[:max(n, 0)], err, want)
			}
		}
	}
}

func checkNames(t *testing.T, root string) {
	t.Helper()
	for _, name := range oddNames {
		if _, err := os.Lstat(filepath.Join(root, "n") + "/" + name); err != nil {
			t.Error(err)
		}
	}
	if target, err := os.Readlink(filepath.Join(root, "n", "link")); err != nil || target != "latin\xe9" {
		t.Errorf("link to %q, %v", target, err)
	}
}

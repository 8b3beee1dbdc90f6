package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unicode/utf8"
)

// TestEncodedNames: a name that is encoded is UTF-8, and decoded it is itself.
func TestEncodedNames(t *testing.T) {
	for _, name := range []string{"\xe9", "caf\xe9", "\xff\xfe\xfd", rawPrefix, rawPrefix + "\xe9", "a\uf7e9\xe9", "\uf700é\x80", "\xed\xa0\x80", "日本\xa4", "ordinary"} {
		got := encodeNames("d/"+name+"/f\xff", false)
		dir := filepath.Base(filepath.Dir(got))
		if !utf8.ValidString(dir) || decodeName(dir) != name || filepath.Base(got) != "f\xff" {
			t.Errorf("%q is %q, and that is %q", name, got, decodeName(dir))
		}
	}
}

// rawLayer is a layer of directories (names that end with a slash), hard links ("to<from")
// and files, whose names need not be UTF-8.
func rawLayer(t *testing.T, names ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range names {
		h := &tar.Header{Name: name, Mode: 0o751, Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0), Format: tar.FormatGNU}
		if at := bytes.IndexByte([]byte(name), '<'); at > 0 {
			h.Name, h.Linkname, h.Typeflag = name[:at], name[at+1:], tar.TypeLink
		} else if name[len(name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestRawNames: names of directories need not be UTF-8, in one layer and over another.
func TestRawNames(t *testing.T) {
	img := build(t, imageSpec{tars: [][]byte{
		rawLayer(t, "caf\xe9/", "caf\xe9/\xff\xfe/", "caf\xe9/\xff\xfe/x", "caf\xe9/gone", "caf\xe9/\xe0\xe1", "caf\xe9/hard<caf\xe9/\xe0\xe1", rawPrefix+"own/", rawPrefix+"own/x", "f\xff"),
		rawLayer(t, "caf\xe9/.wh.gone", "caf\xe9/\xff\xfe/y", "caf\xe9/low<caf\xe9/\xff\xfe/x"),
	}})
	want := []string{".", rawPrefix + "own", rawPrefix + "own/x", "caf\xe9", "caf\xe9/hard", "caf\xe9/low", "caf\xe9/\xe0\xe1", "caf\xe9/\xff\xfe", "caf\xe9/\xff\xfe/x", "caf\xe9/\xff\xfe/y", "f\xff"}
	slices.Sort(want)
	for _, driver := range []string{DriverNative, DriverFuse} {
		t.Run(driver, func(t *testing.T) {
			f := startFake(t, img, nil)
			o := testOptions(t, t.TempDir(), driver)
			insecureConf(t, o, f.host)
			s := openStore(t, o)
			pulled := pullRef(t, s, f.host+"/app:v1")
			root, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: pulled.ID})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			err = filepath.WalkDir(root.Path, func(path string, d os.DirEntry, err error) error {
				name, _ := filepath.Rel(root.Path, path)
				got = append(got, name)
				return err
			})
			slices.Sort(got)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("the root file system has %q (%v), want %q", got, err, want)
			}
			if st, err := os.Stat(filepath.Join(root.Path, "caf\xe9")); err != nil || st.Mode().Perm() != 0o751 || st.ModTime().Unix() != 1700000000 {
				t.Errorf("the directory has mode and time %v (%v)", st, err)
			}
			var layer, saved bytes.Buffer
			if err := packLayer(context.Background(), root.Path, &layer, DefaultLimits()); err != nil {
				t.Errorf("commit: %v", err)
			}
			if err := s.Images.Save(context.Background(), []string{pulled.ID}, "docker-archive", &saved); err != nil {
				t.Errorf("save: %v", err)
			}
		})
	}
}

package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tarEntries packs entries in the order given. Each is "NAME" (a directory with a
// trailing slash), "NAME=CONTENT", "NAME->TARGET" (symbolic) or "NAME=>TARGET" (hard).
func tarEntries(t testing.TB, entries ...any) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h, content := &tar.Header{Mode: 0o644, Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}, ""
		switch e := e.(type) {
		case *tar.Header:
			h = e
		case string:
			if name, target, ok := strings.Cut(e, "=>"); ok {
				h.Name, h.Linkname, h.Typeflag = name, target, tar.TypeLink
			} else if name, target, ok := strings.Cut(e, "->"); ok {
				h.Name, h.Linkname, h.Typeflag = name, target, tar.TypeSymlink
			} else if h.Name, content, _ = strings.Cut(e, "="); strings.HasSuffix(h.Name, "/") {
				h.Typeflag, h.Mode = tar.TypeDir, 0o755
			}
		}
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func dirEntry(name string, mode int64, uid, gid int) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, Uid: uid, Gid: gid}
}

// listing describes a tree: a line a file.
func listing(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		switch {
		case d.IsDir():
			fmt.Fprintf(&b, "%s/ ", rel)
			if st.Mode&0o7777 != 0o755 || st.Uid+st.Gid != 0 {
				fmt.Fprintf(&b, "%o,%d,%d ", st.Mode&0o7777, st.Uid, st.Gid)
			}
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s->%s ", rel, target)
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s=%s ", rel, data)
		default:
			fmt.Fprintf(&b, "%s:%v ", rel, d.Type())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(b.String())
}

// layerRules are what layers say, and the tree that an image of them has
// (image-spec/layer.md), whatever the driver.
var layerRules = []struct {
	name   string
	layers [][]any
	want   string
}{
	{"whiteout before a new directory", [][]any{{"d/", "d/old=o"}, {".wh.d", "d/", "d/new=n"}}, "d/ d/new=n"},
	{"whiteout after a new directory", [][]any{{"d/", "d/old=o"}, {"d/", "d/new=n", ".wh.d"}}, "d/ d/new=n"},
	{"whiteout between a new directory and its content", [][]any{{"d/", "d/old=o"}, {"d/", ".wh.d", "d/new=n"}}, "d/ d/new=n"},
	{"whiteout and a directory taken for granted", [][]any{{"d/", "d/old=o"}, {".wh.d", "d/new=n"}}, "d/ d/new=n"},
	{"whiteout of a directory over two layers", [][]any{{"d/", "d/a=1"}, {"d/b=2"}, {".wh.d", "d/", "d/c=3"}}, "d/ d/c=3"},
	{"whiteout before a new file", [][]any{{"f=old"}, {".wh.f", "f=new"}}, "f=new"},
	{"whiteout after a new file", [][]any{{"f=old"}, {"f=new", ".wh.f"}}, "f=new"},
	{"whiteout and a new link", [][]any{{"l=old"}, {".wh.l", "l->f"}}, "l->f"},
	{"whiteout and a new hard link", [][]any{{"l=old"}, {".wh.l", "f=f", "l=>f"}}, "f=f l=f"},
	{"whiteout of a file, new directory", [][]any{{"a=f"}, {".wh.a", "a/", "a/x=x"}}, "a/ a/x=x"},
	{"whiteout of a directory, new file", [][]any{{"a/", "a/x=x"}, {".wh.a", "a=f"}}, "a=f"},
	{"whiteout of a name that is new below it only", [][]any{{"a/", "a/b/", "a/b/old=o"}, {"a/", "a/.wh.b", "a/b/", "a/b/new=n"}}, "a/ a/b/ a/b/new=n"},
	{"whiteout of a directory and of its content", [][]any{{"a/", "a/x=x", "a/y=y"}, {"a/.wh.x", ".wh.a"}}, ""},
	{"whiteout of a directory, then of its content", [][]any{{"a/", "a/x=x", "a-b=1"}, {".wh.a", "a/.wh.x", ".wh.a-b"}}, ""},
	{"whiteout twice", [][]any{{"f=f", "g=g"}, {".wh.f", ".wh.f"}}, "g=g"},
	{"whiteout of nothing", [][]any{{"g=g"}, {".wh.f", "x/.wh.y"}}, "g=g"},
	{"whiteout, new in the layer above", [][]any{{"d/", "d/old=o"}, {".wh.d"}, {"d/", "d/new=n"}}, "d/ d/new=n"},
	{"opaque directory", [][]any{{"d/", "d/sub/", "d/sub/old=o", "d/old=o"}, {"d/", "d/.wh..wh..opq", "d/new=n"}}, "d/ d/new=n"},
	{"opaque marker last", [][]any{{"d/", "d/old=o"}, {"d/", "d/new=n", "d/.wh.old", "d/.wh..wh..opq"}}, "d/ d/new=n"},
	{"opaque directory taken for granted", [][]any{{dirEntry("d/", 0o700, 3, 4), "d/old=o"}, {"d/.wh..wh..opq", "d/new=n"}}, "d/ 700,3,4 d/new=n"},
	{"opaque root directory", [][]any{{"d/", "d/old=o", "e/", "f=f"}, {".wh..wh..opq", "d/", "d/new=n"}}, "d/ d/new=n"},
	{"names that remove nothing", [][]any{{"d/", "d/k=k"}, {"d/.wh.", "d/.wh..", "d/.wh...", ".wh...", "d/.wh..wh.aufs", ".wh..wh.plnk/", ".wh..wh.plnk/1=x"}}, "d/ d/k=k"},
	{"a directory taken for granted", [][]any{{dirEntry("tmp/", 0o1777, 0, 0), dirEntry("h/", 0o750, 7, 8), "h/a=a"}, {"tmp/x=x", "h/b=b", "n/y=y"}},
		"h/ 750,7,8 h/a=a h/b=b n/ n/y=y tmp/ 1777,0,0 tmp/x=x"},
	{"a file below a lower link", [][]any{{"usr/", "usr/lib/", "usr/lib/a=a", "lib->usr/lib"}, {"lib/foo=f", "lib/d/e=e", "lib/.wh.a"}},
		"lib->usr/lib usr/ usr/lib/ usr/lib/d/ usr/lib/d/e=e usr/lib/foo=f"},
	{"a file below an absolute lower link", [][]any{{"run/", "run/a=a", "var/", "var/run->/run"}, {"var/run/b=b"}}, "run/ run/a=a run/b=b var/ var/run->/run"},
	{"a file below a lower link that leads up", [][]any{{"a/", "a/l->../../../b", "b/"}, {"a/l/c=c"}}, "a/ a/l->../../../b b/ b/c=c"},
	{"a file below a loop of lower links", [][]any{{"a->b", "b->a"}, {"x=x"}}, "a->b b->a x=x"},
	{"a directory over a lower link", [][]any{{"usr/", "usr/lib/", "usr/lib/a=a", "lib->usr/lib"}, {"lib/", "lib/foo=f"}}, "lib/ lib/foo=f usr/ usr/lib/ usr/lib/a=a"},
	{"a directory over a lower link over a directory", [][]any{{"l/", "l/a=a"}, {".wh.l", "l->m"}, {"l/", "l/b=b"}}, "l/ l/b=b"},
	{"a removed link is not followed", [][]any{{"usr/", "lib->usr"}, {".wh.lib", "lib/foo=f"}}, "lib/ lib/foo=f usr/"},
	{"a file over a directory", [][]any{{"a/", "a/x=x"}, {"a=f"}}, "a=f"},
	{"a directory over a file", [][]any{{"a=f"}, {"a/", "a/x=x"}}, "a/ a/x=x"},
	{"hard link to a lower file", [][]any{{"h/", "h/a=lower"}, {"h/b=>h/a", "h/c=>/h/a", "h/d=>./h/b"}}, "h/ h/a=lower h/b=lower h/c=lower h/d=lower"},
	{"hard link to a lower link", [][]any{{"h/", "h/s->t"}, {"h/b=>h/s"}}, "h/ h/b->t h/s->t"},
	{"hard link to a file in a lower link", [][]any{{"usr/", "usr/a=a", "l->usr"}, {"b=>l/a"}}, "b=a l->usr usr/ usr/a=a"},
	{"hard link in a directory of the layer", [][]any{{"x=x"}, {"h/", "h/a=new", "h/b=>h/a"}}, "h/ h/a=new h/b=new x=x"},
	{"a type that POSIX says to take for a file", [][]any{{"x=x"}, {&tar.Header{Name: "c", Typeflag: '7', Mode: 0o644}, &tar.Header{Name: "label", Typeflag: 'V'}}}, "c= x=x"},
	{"a directory of an incremental archive of GNU tar", [][]any{{"x=x"}, {&tar.Header{Name: "d/", Typeflag: 'D', Mode: 0o700, Format: tar.FormatGNU}, "d/f=f"}}, "d/ 700,0,0 d/f=f x=x"},
	{"a file twice", [][]any{{"f=one", "f=two"}}, "f=two"},
	{"a directory twice", [][]any{{dirEntry("d/", 0o700, 1, 1), "d/a=a", dirEntry("d/", 0o750, 2, 2), "d/b=b"}}, "d/ 750,2,2 d/a=a d/b=b"},
	{"a directory, then a file", [][]any{{"g/", "g/x=x", "g=file"}}, "g=file"},
	{"a file, then a directory", [][]any{{"g=file", "g/", "g/x=x"}}, "g/ g/x=x"},
	{"a link, then a file", [][]any{{"f=f", "s->f", "s=plain"}}, "f=f s=plain"},
	{"a file twice under different spellings", [][]any{{"f=one", "./f=two", "/f=three"}}, "f=three"},
	{"a file twice, with links between", [][]any{{"f=one", "h=>f", "i=>f", "f=two", "j=>f"}}, "f=two h=one i=one j=two"},
	{"a whiteout twice, and a file", [][]any{{"f=f", "g=g"}, {".wh.f", "g=1", ".wh.f", "g=2"}}, "g=2"},
	{"attributes of overlays", [][]any{{"s/", "s/secret=s"}, {&tar.Header{Name: "s/", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{
		"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.fuseoverlayfs.opaque": "y", "SCHILY.xattr.trusted.overlay.opaque": "y"}}}}, "s/ s/secret=s"},
	{"a device that overlays take for a whiteout", [][]any{{"z=z"}, {&tar.Header{Name: "z", Typeflag: tar.TypeChar, Mode: 0o644}}}, "z=z"},
	{"hard links to a device, which is left out", [][]any{{"x=x"}, {&tar.Header{Name: "c", Typeflag: tar.TypeChar, Mode: 0o644, Devmajor: 1, Devminor: 3}, "d=>c", "e=>d", "h/", "h/f=>/c", "f=f"}}, "f=f h/ x=x"},
}

// TestLayerRules: an image looks the same with every driver, and as the specification
// says.
func TestLayerRules(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative} {
		t.Run(driver, func(t *testing.T) {
			s := openStore(t, testOptions(t, t.TempDir(), driver))
			for i, c := range layerRules {
				t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
					spec := imageSpec{}
					for _, l := range c.layers {
						spec.tars = append(spec.tars, tarEntries(t, l...))
					}
					img := loadInto(t, s, fmt.Sprintf("localhost/rules:%d", i), build(t, spec))
					root, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(byte(i)), ImageID: img})
					if err != nil {
						t.Fatal(err)
					}
					if got := listing(t, root.Path); got != c.want {
						t.Errorf("%s\nwant %s", got, c.want)
					}
					// A name that is hidden stays so when it is made anew.
					if err := os.RemoveAll(filepath.Join(root.Path, "d")); err != nil {
						t.Error(err)
					}
					if err := os.Mkdir(filepath.Join(root.Path, "d"), 0o755); err != nil {
						t.Error(err)
					}
					if left, err := os.ReadDir(filepath.Join(root.Path, "d")); err != nil || len(left) > 0 {
						t.Errorf("a new directory has %v, %v", left, err)
					}
				})
			}
		})
	}
}

// TestRootDirectory: mode and owner of the root directory are those of the uppermost
// layer with an entry for it; without one it is 0755 of root.
func TestRootDirectory(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative} {
		t.Run(driver, func(t *testing.T) {
			s := openStore(t, testOptions(t, t.TempDir(), driver))
			for i, c := range []struct {
				layers [][]any
				mode   os.FileMode
				uid    uint32
			}{
				{[][]any{{"f=f"}, {"g=g"}}, 0o755, 0},
				{[][]any{{dirEntry("./", 0o700, 0, 0), "f=f"}, {"g=g"}}, 0o700, 0},
				{[][]any{{"f=f"}, {dirEntry("./", 0o750, 1001, 1002)}, {"g=g"}}, 0o750, 1001},
				{[][]any{{dirEntry("./", 0o700, 5, 5)}, {dirEntry("/", 0o1777, 6, 6)}}, 0o1777, 6},
				{[][]any{{dirEntry("./", 0o555, 0, 0)}, {"g=g"}}, 0o555, 0},
			} {
				spec := imageSpec{}
				for _, l := range c.layers {
					spec.tars = append(spec.tars, tarEntries(t, l...))
				}
				img := loadInto(t, s, fmt.Sprintf("localhost/root:%d", i), build(t, spec))
				root, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(byte(i)), ImageID: img})
				if err != nil {
					t.Fatal(err)
				}
				var st unix.Stat_t
				if err := unix.Stat(root.Path, &st); err != nil {
					t.Fatal(err)
				}
				if got := os.FileMode(st.Mode & 0o7777); got != c.mode || st.Uid != c.uid {
					t.Errorf("%d: mode %o, owner %d, want %o, %d", i, got, st.Uid, c.mode, c.uid)
				}
			}
		})
	}
}

// TestCheckTOC: a layer is pulled in part only if nothing in it needs the filter.
func TestCheckTOC(t *testing.T) {
	for entries, whole := range map[string]bool{
		`{"type":"dir","name":"d/"},{"type":"reg","name":"d/f"},{"type":"chunk","name":"d/f"},{"type":"hardlink","name":"h","linkName":"d/f"}`: false,
		`{"type":"dir","name":"./"},{"type":"reg","name":".wh.gone"},{"type":"dir","name":"d"},{"type":"reg","name":"d/.wh..wh..opq"}`:         false,
		`{"type":"dir","name":"d/"},{"type":"reg","name":".wh.d"}`:                                                                             true,
		`{"type":"reg","name":"f"},{"type":"reg","name":"./f"}`:                                                                                true,
		`{"type":"reg","name":"f","uid":4294967293,"gid":4294967293}`:                                                                          false,
		`{"type":"reg","name":"f","uid":-1}`:                                                                                                   true,
		`{"type":"reg","name":"f","gid":4294967295}`:                                                                                           true,
		`{"type":"reg","name":"f","uid":4294967296}`:                                                                                           true,
		`{"type":"reg","name":"d/f"}`:                                                                                                          true,
		`{"type":"hardlink","name":"h","linkName":"f"}`:                                                                                        true,
		`{"type":"reg","name":".wh..wh..opq"}`:                                                                                                 true,
		`{"type":"reg","name":".wh.."}`:                                                                                                        true,
		`{"type":"dir","name":"d","xattrs":{"user.overlay.opaque":"eQ=="}}`:                                                                    true,
	} {
		if why := checkTOC([]byte(`{"version":1,"entries":[` + entries + `]}`)); (why != "") != whole {
			t.Errorf("%s: %q", entries, why)
		}
	}
}

// TestSaveOfDuplicates: what cannot be written out as it came is not.
func TestSaveOfDuplicates(t *testing.T) {
	s := openStore(t, testOptions(t, t.TempDir(), DriverNative))
	img := loadInto(t, s, "localhost/twice:1", build(t, imageSpec{tars: [][]byte{tarEntries(t, "f=1", "f=2")}}))
	if err := s.Images.Save(context.Background(), []string{img}, "docker-archive", io.Discard); !errors.Is(err, ErrUnsupported) {
		t.Errorf("save: %v", err)
	}
	if problems, err := s.Images.Check(context.Background(), false); err != nil || len(problems) > 0 {
		t.Errorf("it is taken for damaged: %v, %v", problems, err)
	}
	img = loadInto(t, s, "localhost/once:1", build(t, imageSpec{tars: [][]byte{tarEntries(t, "d/", "d/old=1"), tarEntries(t, ".wh.d", "d/", "d/f=2", "d/g=>d/f")}}))
	if err := s.Images.Save(context.Background(), []string{img}, "oci-archive", io.Discard); err != nil {
		t.Errorf("save: %v", err)
	}
}

// TestLongPaths: an image with paths that are longer, with the store's, than one call of
// the kernel takes does not keep others from being counted.
func TestLongPaths(t *testing.T) {
	s := openStore(t, testOptions(t, t.TempDir(), DriverNative))
	name, entries := "p", []any{"p/"}
	for range 40 {
		name += "/" + strings.Repeat("q", 99)
		entries = append(entries, name+"/")
	}
	img := loadInto(t, s, "localhost/long:1", build(t, imageSpec{tars: [][]byte{tarEntries(t, append(entries, name+"/f=deep")...)}}))
	info, err := s.Images.FSInfo(context.Background())
	if err != nil || info.InodesUsed < 42 {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: img}); err != nil {
		t.Error(err)
	}
	if _, err := s.Rootfs.Usage(context.Background(), containerID(1)); err != nil {
		t.Error(err)
	}
}

package storage

import (
	"bytes"
	"context"
	"slices"
	"testing"
)

// TestSaveOfNames: an archive of several names, of which some are of one image, has them
// all; a name twice is there once.
func TestSaveOfNames(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, testOptions(t, t.TempDir(), DriverNative))
	one := loadInto(t, s, "localhost/one:1", build(t, imageSpec{tars: [][]byte{tarEntries(t, "f=1")}}))
	loadInto(t, s, "localhost/two:1", build(t, imageSpec{tars: [][]byte{tarEntries(t, "f=2")}}))
	if err := s.Images.Tag(ctx, one, "localhost/other:1"); err != nil {
		t.Fatal(err)
	}
	names := []string{"localhost/one:1", "localhost/two:1", "localhost/other:1", "localhost/one:1", one}
	var archive bytes.Buffer
	if err := s.Images.Save(ctx, names, "docker-archive", &archive); err != nil {
		t.Fatal(err)
	}
	images, err := openStore(t, testOptions(t, t.TempDir(), DriverNative)).Images.LoadFrom(ctx, &archive, "", "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, img := range images {
		got = append(got, img.RepoTags...)
	}
	slices.Sort(got)
	if want := []string{"localhost/one:1", "localhost/other:1", "localhost/two:1"}; !slices.Equal(got, want) {
		t.Errorf("loaded %v, want %v", got, want)
	}
}

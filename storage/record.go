package storage

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// record is what is known about a root file system or image mount: the file
// record.json in its directory, written before anything is mounted.
type record struct {
	ImageID  string  `json:"image"`
	ReadOnly bool    `json:"readOnly,omitempty"`
	UIDMap   []IDMap `json:"uidMap,omitempty"`
	GIDMap   []IDMap `json:"gidMap,omitempty"`
	// Volumes are those that MakeVolumes has made, with the names of their directories, for
	// the paths VolumesAsked.
	Volumes      []Volume `json:"volumes,omitempty"`
	VolumesAsked []string `json:"volumesAsked,omitempty"`
}

const recordFile = "record.json"

// userOf names a root file system or image mount that needs the image, or "".
func (l *layerStore) userOf(imageID string) (string, error) {
	for _, parent := range []string{l.dirs.rootfs(""), l.dirs.imageMount("")} {
		ids, err := listIDs(parent)
		if err != nil {
			return "", err
		}
		for _, id := range ids {
			if r, err := readRecord(filepath.Join(parent, id)); err == nil && r.ImageID == imageID {
				return filepath.Base(parent) + "/" + id, nil
			}
		}
	}
	return "", nil
}

func listIDs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	slices.Sort(ids)
	return ids, nil
}

func readRecord(dir string) (record, error) {
	var r record
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Join(dir, recordFile), err)
	}
	return r, nil
}

func writeRecord(dir string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, recordFile+".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, recordFile))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

package storage

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"

	cstorage "go.podman.io/storage"
	graphdriver "go.podman.io/storage/drivers"
	"go.podman.io/storage/pkg/chunked"
	"golang.org/x/sys/unix"
)

// tocKey is where containers/storage keeps the table of contents of a layer that was
// pulled in part.
const tocKey = "zstd-chunked-manifest"

// PrepareStagedLayer pulls a layer in part. One that a layerFilter would change is pulled
// as a whole instead.
func (s *holdingStore) PrepareStagedLayer(options *graphdriver.ApplyDiffWithDifferOpts, differ graphdriver.Differ) (*graphdriver.DriverWithDifferOutput, error) {
	out, err := s.Store.PrepareStagedLayer(options, differ)
	if err != nil {
		return nil, err
	}
	if why := checkTOC(out.BigData[tocKey]); why != "" {
		if err := s.Store.CleanupStagedLayer(out); err != nil {
			return nil, err
		}
		return nil, pullWhole(why)
	}
	return out, nil
}

// pullWhole is why a layer cannot be pulled in part. The library goes on with the whole.
type pullWhole string

func (e pullWhole) Error() string { return "pulled as a whole: " + string(e) }

// As makes e the error by which the library knows that.
func (e pullWhole) As(target any) bool {
	_, ok := target.(*chunked.ErrFallbackToOrdinaryLayerDownload)
	return ok
}

// markRoot marks a layer that was pulled in part and has an entry for the root directory.
func (s *holdingStore) markRoot(args cstorage.ApplyStagedLayerOptions) {
	if args.DiffOutput != nil && args.DiffOutput.RootDirMode != nil {
		_ = unix.Setxattr(s.layers.diffDir(args.ID), rootXattr, []byte("y"), 0) // without, it is 0755
	}
}

// checkTOC returns why the layer with this table of contents needs a layerFilter, or "".
func checkTOC(toc []byte) string {
	var doc struct {
		Entries []struct {
			Type     string            `json:"type"`
			Name     string            `json:"name"`
			Linkname string            `json:"linkName"`
			UID      int               `json:"uid"`
			GID      int               `json:"gid"`
			Xattrs   map[string]string `json:"xattrs"`
		} `json:"entries"`
	}
	if len(toc) == 0 {
		return ""
	}
	if err := json.Unmarshal(toc, &doc); err != nil {
		return "its table of contents cannot be read"
	}
	kinds := make(map[string]string, len(doc.Entries))
	for _, e := range doc.Entries {
		if e.Type == "chunk" {
			continue
		}
		name := cleanName(e.Name)
		if _, twice := kinds[name]; twice && name != "" {
			return fmt.Sprintf("%.200q is there twice", name)
		}
		if !isID(e.UID) || !isID(e.GID) {
			return fmt.Sprintf("%.200q belongs to nobody: %d:%d", name, e.UID, e.GID)
		}
		for attr := range e.Xattrs {
			if ofOverlays(attr) {
				return fmt.Sprintf("%.200q has the attribute %.100q", name, attr)
			}
		}
		kinds[name] = e.Type
	}
	for _, e := range doc.Entries {
		name := cleanName(e.Name)
		if e.Type == "chunk" || name == "" {
			continue
		}
		dir, base := path.Dir(name), path.Base(name)
		if dir != "." && kinds[dir] != "dir" {
			return fmt.Sprintf("it has no directory for %.200q", name)
		}
		if _, there := kinds[cleanName(e.Linkname)]; e.Type == "hardlink" && !there {
			return fmt.Sprintf("%.200q is a link to a file of a lower layer", name)
		}
		removed, ok := strings.CutPrefix(base, whiteoutPrefix)
		if !ok || base == opaqueMarker && dir != "." {
			continue
		}
		if _, there := kinds[path.Join(dir, removed)]; there || removed == "" || removed == "." || removed == ".." || strings.HasPrefix(removed, whiteoutPrefix) {
			return fmt.Sprintf("of the whiteout %.200q", name)
		}
	}
	return ""
}

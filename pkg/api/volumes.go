package api

import "time"

// VolumeRequest names a volume.
type VolumeRequest struct {
	Name string `json:"name"`
	// Labels of a volume that is made.
	Labels map[string]string `json:"labels,omitempty"`
	// Force removes the containers that have the volume, and takes one that is not there
	// for removed.
	Force bool `json:"force,omitempty"`
}

// Volume is a named volume.
type Volume struct {
	Name string `json:"name"`
	// Path of its content in the node, which is that of the host.
	Path    string            `json:"mountpoint"`
	Labels  map[string]string `json:"labels"`
	Created time.Time         `json:"created"`
	// Containers are the IDs of those that mount it, also if they do not run.
	Containers []string `json:"containers"`
}

// VolumesResponse lists volumes.
type VolumesResponse struct {
	Volumes []Volume `json:"volumes"`
}

// VolumeRemoved says whether a volume was there to be removed.
type VolumeRemoved struct {
	Removed bool `json:"removed"`
}

// ImportChunk is a piece of a tar stream. The first one names the volume.
type ImportChunk struct {
	Name string `json:"name,omitempty"`
	Data []byte `json:"data,omitempty"`
}

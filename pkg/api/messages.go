package api

import "time"

// Empty is the response of a call that returns nothing.
type Empty struct{}

// LoadRequest names a file or directory, readable by the daemon's user, to load images
// from.
type LoadRequest struct {
	// Source is "oci:DIR[:REF]", "oci-archive:FILE[:REF]",
	// "docker-archive:FILE[:REF]" or a path; paths are absolute.
	Source string `json:"source"`
}

// LoadChunk is a piece of an archive. The first one says what the archive is.
type LoadChunk struct {
	// Kind is "oci-archive" or "docker-archive", or empty: then the content says it.
	Kind string `json:"kind,omitempty"`
	// Ref is the one image of the archive to load; empty for all.
	Ref  string `json:"ref,omitempty"`
	Data []byte `json:"data,omitempty"`
}

// LoadResponse lists what was loaded.
type LoadResponse struct {
	Images []LoadedImage `json:"images"`
}

// LoadedImage is one image that was loaded.
type LoadedImage struct {
	ID   string   `json:"id"`
	Tags []string `json:"tags"`
}

// PullRequest names an image to pull, with the credentials of auth.json.
type PullRequest struct {
	Ref string `json:"ref"`
	// Platform is OS/ARCHITECTURE[/VARIANT] of the image; empty is what fits this machine.
	Platform string `json:"platform,omitempty"`
}

// PullEvent is the progress of a pull; the last one has the image's ID.
type PullEvent struct {
	// Downloaded and Total are bytes of the layers whose download has begun.
	Downloaded int64 `json:"downloaded"`
	Total      int64 `json:"total"`
	// Layers begun (with the configuration, which is one more), and done or
	// there already.
	Layers int    `json:"layers"`
	Done   int    `json:"done"`
	ID     string `json:"id,omitempty"`
}

// SaveRequest names the images of an archive.
type SaveRequest struct {
	Names []string `json:"names"`
	// Format is "docker-archive" or "oci-archive"; the latter holds one image.
	Format string `json:"format"`
}

// Chunk is a piece of a byte stream.
type Chunk struct {
	Data []byte `json:"data"`
}

// PushRequest names an image, and the name that it gets at its registry: the same where
// Target is empty.
type PushRequest struct {
	Source string `json:"source"`
	Target string `json:"target,omitempty"`
}

// PushResponse is the name that the image has at the registry.
type PushResponse struct {
	Name string `json:"name"`
}

// TagRequest gives the image Source the name Target.
type TagRequest struct {
	Source string `json:"source"`
	Target string `json:"target"`
}

// UntagRequest names an image by a tag, a digest or its ID.
type UntagRequest struct {
	Name string `json:"name"`
	// Force removes an image with several names that is named by its ID.
	Force bool `json:"force,omitempty"`
}

// UntagResponse lists what was removed.
type UntagResponse struct {
	Untagged []string `json:"untagged,omitempty"`
	// Deleted is the ID of the image if that is gone as well.
	Deleted string `json:"deleted,omitempty"`
}

// LoginRequest has the credentials for a registry ("host[:port]").
type LoginRequest struct {
	Registry string `json:"registry"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// LoginResponse names the file that holds the credentials.
type LoginResponse struct {
	File string `json:"file"`
}

// LogoutRequest names a registry; All means every one.
type LogoutRequest struct {
	Registry string `json:"registry,omitempty"`
	All      bool   `json:"all,omitempty"`
}

// WaitRequest names a container by its full ID.
type WaitRequest struct {
	ContainerID string `json:"containerId"`
	// Attempt is the run to wait for, by the number that the CRI gives it; nil is the
	// present one. It may have ended, and others since.
	Attempt *uint32 `json:"attempt,omitempty"`
}

// WaitResponse is how the container ended.
type WaitResponse struct {
	ExitCode int32  `json:"exitCode"`
	Reason   string `json:"reason"`
	Message  string `json:"message,omitempty"`
	// FinishedAt is when this run of the container ended.
	FinishedAt time.Time `json:"finishedAt,omitzero"`
}

// SignalRequest asks for a signal, by its number on this machine.
type SignalRequest struct {
	ContainerID string `json:"containerId"`
	Signal      int    `json:"signal"`
	// Kill is that its user ends the container by it: with SIGKILL or its stop signal it
	// is not restarted. Without Kill the signal is a forwarded one.
	Kill bool `json:"kill,omitempty"`
}

// TopRequest names a container by its full ID.
type TopRequest struct {
	ContainerID string `json:"containerId"`
}

// TopResponse lists processes.
type TopResponse struct {
	Processes []Process `json:"processes"`
}

// Process is one process of a container.
type Process struct {
	// PID as the container sees it, 0 for one that it does not see; NodePID in
	// the node.
	PID     int `json:"pid"`
	NodePID int `json:"nodePid"`
	PPID    int `json:"ppid"`
	// UID as the node sees it.
	UID   uint32 `json:"uid"`
	State string `json:"state"`
	// CPU is the time used so far, RSS in bytes.
	CPU     time.Duration `json:"cpuNanoseconds"`
	RSS     uint64        `json:"rssBytes"`
	Threads int           `json:"threads"`
	Started time.Time     `json:"started"`
	Command string        `json:"command"`
}

// CopyRequest names a path in a container.
type CopyRequest struct {
	ContainerID string `json:"containerId"`
	Path        string `json:"path"`
}

// CopyInfoResponse describes a path.
type CopyInfoResponse struct {
	Exists bool `json:"exists"`
	IsDir  bool `json:"isDir"`
}

// CopyInChunk is a piece of a tar stream. The first one names the directory.
type CopyInChunk struct {
	ContainerID string `json:"containerId,omitempty"`
	Path        string `json:"path,omitempty"`
	Data        []byte `json:"data,omitempty"`
}

// CheckRequest asks for a check of the records, the images and the leftovers of removed
// pods.
type CheckRequest struct {
	Repair bool `json:"repair"`
}

// CheckResponse lists what was found; nothing when all is well.
type CheckResponse struct {
	Findings []Finding `json:"findings"`
}

// Finding is one inconsistency.
type Finding struct {
	Part     string `json:"part"` // "state", "images", "orphans"
	What     string `json:"what"`
	Repaired bool   `json:"repaired"`
	Hint     string `json:"hint,omitempty"`
}

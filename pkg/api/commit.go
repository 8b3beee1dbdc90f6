package api

// ChangesRequest names a container by its full ID.
type ChangesRequest struct {
	ContainerID string `json:"containerId"`
}

// ChangesResponse lists changes by path.
type ChangesResponse struct {
	Changes []Change `json:"changes"`
}

// Change is a path that was added ("A"), changed ("C") or deleted ("D").
type Change struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
}

// CommitRequest names a container by its full ID, and the image that is made of it.
type CommitRequest struct {
	ContainerID string `json:"containerId"`
	Name        string `json:"name"`
	Author      string `json:"author,omitempty"`
	Message     string `json:"message,omitempty"`
	// Config is what changes of the configuration of the container's image: those fields
	// of the OCI's ImageConfig that are there.
	Config ImageChanges `json:"config"`
}

// ImageChanges are fields of an image's configuration. Nil ones stay as they are.
type ImageChanges struct {
	Cmd        []string          `json:"cmd,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Env        []string          `json:"env,omitempty"` // added
	Labels     map[string]string `json:"labels,omitempty"`
	Ports      []string          `json:"ports,omitempty"` // added
	Volumes    []string          `json:"volumes,omitempty"`
	User       *string           `json:"user,omitempty"`
	WorkingDir *string           `json:"workingDir,omitempty"`
	StopSignal *string           `json:"stopSignal,omitempty"`
}

// CommitResponse is the ID of the image.
type CommitResponse struct {
	ID string `json:"id"`
}

package control

// CheckRequest asks for a check of the records, the images and what is left of
// former pods.
type CheckRequest struct {
	Repair bool `json:"repair"`
}

// CheckResponse lists what was found; nothing when all is well.
type CheckResponse struct {
	Findings []Finding `json:"findings"`
}

// Finding is something that is not as it should be.
type Finding struct {
	Part     string `json:"part"` // "state", "images", "orphans"
	What     string `json:"what"`
	Repaired bool   `json:"repaired"`
	Hint     string `json:"hint,omitempty"`
}

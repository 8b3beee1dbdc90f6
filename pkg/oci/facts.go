package oci

// Started reports whether the container's command has been executed, also when
// it has ended since: what a server finds out that died between a start and
// its record.
func (f Facts) Started() bool { return f.started() }

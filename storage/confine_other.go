//go:build !amd64 && !arm64

package storage

// No filter is built for other architectures.
const (
	auditArch        = 0
	firstForeignCall = 0
)

var refusedHere []uint32

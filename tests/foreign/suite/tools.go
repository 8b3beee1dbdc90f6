//go:build tools

// Package suite pins what make test-foreign builds: containerd's CRI integration
// tests.
package suite

import _ "github.com/containerd/containerd/v2/integration"

//go:build tools

// Package tools pins the CRI clients that the tests use: crictl and critest,
// which is a test binary of its package.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/cmd/critest"
)

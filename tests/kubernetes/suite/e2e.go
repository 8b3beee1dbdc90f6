//go:build node_e2e

// Package suite keeps in go.mod what the tests of Kubernetes' node e2e suite import: build.sh
// compiles them, and they are no tool.
package suite

import (
	_ "k8s.io/dynamic-resource-allocation/kubeletplugin"
	_ "k8s.io/kubernetes/test/e2e_node"
)

package main

import (
	"os"

	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/rootless"
)

// brokerTree asks the node's broker for what the node does not show of the host.
type brokerTree struct{ node *rootless.Node }

// hostTree returns nil where the node shows all.
func hostTree(node *rootless.Node) container.HostTree {
	if node.View != rootless.ViewMinimal {
		return nil
	}
	return brokerTree{node}
}

// Open implements container.HostTree.
func (t brokerTree) Open(path string) (*os.File, error) {
	if t.node.Shows(path) {
		return nil, nil
	}
	return t.node.OpenHost(path)
}

// OpenAbove implements container.HostTree.
func (t brokerTree) OpenAbove(path string) (*os.File, string, error) {
	if t.node.Shows(path) {
		return nil, path, nil
	}
	return t.node.OpenHostAbove(path)
}

// OpenLog implements container.HostTree.
func (t brokerTree) OpenLog(path string) (*os.File, error) {
	if t.node.Shows(path) {
		return nil, nil
	}
	return t.node.OpenHostLog(path)
}

// HasOwn implements container.HostTree.
func (t brokerTree) HasOwn(path string) bool { return t.node.HasOwn(path) }

// Package attack tries attacks on the real daemon: from images, archives,
// registries, manifests, clients, containers and neighbours. An attack that gets
// through fails its test; docs/security.md has the table of all of them.
//
// The form for every day is short (go test -short, make test); make attack also
// runs what takes long.
package attack

import (
	"testing"

	"github.com/subpod/subpod/tests/node"
)

func TestMain(m *testing.M) { node.Main(m) }

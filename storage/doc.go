// Package storage keeps images and the root file systems of containers for an
// unprivileged user.
//
// Images live in a containers/storage store below Options.Root and are pulled
// by containers/image with the user's registries.conf, policy.json, auth.json
// and certs.d. These libraries go on as go.podman.io/storage and
// go.podman.io/image. Root file systems are overlays that this package mounts
// itself over the layers of that store: containers/storage has a lock over all
// layers, which it holds while it writes a record (with vfs, for as long as a
// layer is being unpacked), and a container's start must not wait for somebody
// else's pull. What is mounted is always asked of the kernel, never read from a
// counter, so it is right after a crash and after a reboot.
//
// The process must be uid 0 of a user namespace with a mount namespace of its
// own, and must call Dispatch first thing in main.
package storage

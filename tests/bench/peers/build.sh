#!/bin/sh
# Builds containerd with what its rootless set-up needs into .cache/peers/bin, from the
# module proxy. Does nothing when all of it is there and newer than what it is built from.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
module=$root/tests/bench/peers/containerd
bin=$root/.cache/peers/bin
mkdir -p "$bin"
cd "$module"
version=$("$root/tests/go.sh" list -m -f '{{.Version}}' github.com/containerd/containerd/v2)
# CRI and what it needs; nothing that the measurement does not use.
tags="no_btrfs no_devmapper no_zfs no_aufs no_otlp no_tracing"
for tool in $("$root/tests/go.sh" list tool); do
	to=$bin/${tool##*/}
	if [ "$to" -nt go.mod ] && [ "$to" -nt "$root/tests/bench/peers/build.sh" ]; then continue; fi
	CGO_ENABLED=0 "$root/tests/go.sh" build -trimpath -buildvcs=false -tags "$tags" \
		-ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=$version" -o "$to" "$tool"
done

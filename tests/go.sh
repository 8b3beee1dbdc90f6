#!/bin/sh
# The go command for this module: the one in PATH if it is new enough to fetch
# the toolchain that go.mod asks for (1.21 and later do so by themselves), else
# that toolchain, fetched through the module proxy by the old go into .cache/go.
#
#   tests/go.sh build ./...       runs it
#   tests/go.sh --which           prints its path
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
go=$(PATH=$PATH:/usr/local/go/bin command -v go) || {
	echo "go: not found. Run 'make deps', or install Go from https://go.dev/dl" >&2
	exit 1
}

minor=$("$go" version | sed -n 's/^go version go1\.\([0-9]*\).*/\1/p')
if [ "${minor:-0}" -lt 21 ]; then
	want=$(sed -n 's/^go //p' "$root/go.mod")
	module=golang.org/toolchain@v0.0.1-go$want.linux-$("$go" env GOARCH)
	if [ ! -x "$root/.cache/go/$want/bin/go" ]; then
		mkdir -p "$root/.cache/go"
		modcache=$(mktemp -d "$root/.cache/go/get.XXXXXX")
		(cd "$modcache" && GO111MODULE=on GOFLAGS=-modcacherw GOMODCACHE=$modcache "$go" mod download "$module")
		dir=$modcache/$module
		# A module carries no execute bits.
		chmod -R +x "$dir/bin" "$dir/pkg/tool"
		mv "$dir" "$root/.cache/go/$want"
		rm -rf "$modcache"
	fi
	go=$root/.cache/go/$want/bin/go
	export GOTOOLCHAIN=local
fi

[ "${1-}" = --which ] && { echo "$go"; exit; }
exec "$go" "$@"

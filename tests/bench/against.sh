#!/bin/sh
# Builds the programs of another commit, and measures them beside this tree's.
#
#   tests/bench/against.sh COMMIT [flags of the test]
set -eu
cd "$(dirname "$0")/../.."
base=$(git rev-parse --verify "${1:?usage: tests/bench/against.sh COMMIT [flags]}^{commit}")
shift
tree=$PWD/.cache/against/$base
if [ ! -d "$tree" ]; then
	mkdir -p "$tree.new"
	git archive "$base" | tar -xC "$tree.new"
	mv "$tree.new" "$tree"
fi
make --no-print-directory -C "$tree" build >&2
exec env CGO_ENABLED=0 tests/go.sh test -buildvcs=false -tags "${TAGS-}" -count=1 -timeout 60m \
	./tests/bench -v -run '^TestBenchAgainst$' -against "$tree/bin" "$@"

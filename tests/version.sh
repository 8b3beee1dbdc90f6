#!/bin/sh
# Prints the version of this tree: that of the file VERSION, with the commit as build
# metadata where the tree is git's: 0.2.0-dev+d57127d, or 0.2.0-dev+d57127d-dirty
# when tracked files have changed. An unpacked archive has VERSION alone.
set -eu
cd "$(dirname "$0")/.."
read -r version <VERSION

# An archive may be unpacked inside of another project's tree.
top=$(git rev-parse --show-toplevel 2>/dev/null) || top=
if [ -n "$top" ] && [ "$top" -ef . ] && commit=$(git describe --always --dirty --exclude '*' --abbrev=7 2>/dev/null); then
	version=$version+$commit
fi
echo "$version"

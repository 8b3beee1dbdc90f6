#!/bin/sh
# Makes the packages that tests/vm installs: of this tree, and of an earlier commit that
# made none, OLD, with this tree's packing. fast.deb is new.deb with another compression,
# which old.deb has as well.
#
#   .cache/vm/packages/new.deb  fast.deb  old.deb  subpod-VERSION-linux-amd64.tar.gz
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
OLD=${OLD:-d57127d}
to=$root/.cache/vm/packages
tags="containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper"
cd "$root"
mkdir -p "$to"

rm -f dist/subpod_*_amd64.deb dist/subpod-*-linux-amd64.tar.gz "$to"/subpod-*-linux-amd64.tar.gz
make --no-print-directory deb archive-amd64 ARCH=amd64 >/dev/null
cp dist/subpod_*_amd64.deb "$to/new.deb"
cp dist/subpod-*-linux-amd64.tar.gz "$to/"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ ! -e "$to/$OLD/subpod" ]; then
	git archive "$OLD" | tar -x -C "$work"
	mkdir -p "$work/made"
	for program in subpod subpod-server subpod-node subpod-node-gvisor; do
		(cd "$work" && CGO_ENABLED=0 "$root/tests/go.sh" build -buildvcs=false -trimpath -tags "$tags" \
			-ldflags "-s -w -X main.version=0.1.0-dev+$OLD" -o "made/$program" "./cmd/$program")
	done
	rm -rf "${to:?}/$OLD"
	mv "$work/made" "$to/$OLD"
fi
# The tree of this package, with the programs and the unit of then.
cp -a dist/stage/package-amd64 "$work/stage"
rm "$work/stage/usr/bin/"*
cp "$to/$OLD/"* "$work/stage/usr/bin/"
sed -i '/^WatchdogSec=/d' "$work/stage/usr/lib/systemd/user/subpod.service"
TOOL=$to/$OLD/subpod .cache/bin/pack-* deb -version "0.1.0-dev+$OLD" -epoch "$(git log -1 --format=%ct "$OLD")" -arch amd64 \
	-scripts tests/pack/scripts -stage "$work/stage" -out "$work/out" >/dev/null
# The emulated machine would unpack xz for half a minute each time.
faster() {
	rm -rf "$work/tree"
	dpkg-deb -R "$1" "$work/tree"
	dpkg-deb --root-owner-group -Zzstd -z3 -b "$work/tree" "$2" >/dev/null
}
faster "$to/new.deb" "$to/fast.deb"
faster "$work"/out/*.deb "$to/old.deb"

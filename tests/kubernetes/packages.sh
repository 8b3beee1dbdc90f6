#!/bin/sh
# Fetches the programs of the images that the node e2e suite asks for, from Debian's archive
# (the machine's own apt sources) and without installing any of it: .cache/kubernetes/sysroot.
# Needs no privileges.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$root/.cache/kubernetes"
cd "$root/.cache/kubernetes"
programs="bash bind9-dnsutils bind9-libs curl hostname iproute2 libc-bin netcat-openbsd nginx socat util-linux"

[ ! -e sysroot/.complete ] || [ "$(cat sysroot/.complete)" != "$programs" ] || exit 0
rm -rf sysroot debs
mkdir -p debs/partial sysroot
# shellcheck disable=SC2086
libs=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts \
	--no-breaks --no-replaces --no-enhances $programs |
	grep -E '^(lib[a-z0-9.+-]+|zlib1g)$' | grep -vE -- '-perl|libperl|-dbd-|-ldap$|-modules|^libc-bin$' | sort -u)
# shellcheck disable=SC2086
(cd debs && apt-get -q -o APT::Sandbox::User="$(id -un)" download $programs $libs)
for deb in debs/*.deb; do
	dpkg-deb -x "$deb" sysroot
done
rm -rf debs
echo "$programs" >sysroot/.complete

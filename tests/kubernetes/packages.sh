#!/bin/sh
# Fetches the programs of images that the tests make, from Debian's archive (the machine's
# own apt sources) and without installing any of it. Needs no privileges.
#
#   tests/kubernetes/packages.sh             those that the node e2e suite asks for:
#                                            .cache/kubernetes/sysroot
#   tests/kubernetes/packages.sh --addons    what kube-router and flannel run:
#                                            .cache/kubernetes/sysroot-addons
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$root/.cache/kubernetes"
cd "$root/.cache/kubernetes"
programs="bash bind9-dnsutils bind9-libs curl hostname iproute2 libc-bin netcat-openbsd nginx socat util-linux"
sysroot=sysroot
if [ "${1-}" = --addons ]; then
	programs="ipset iptables"
	sysroot=sysroot-addons
fi
debs=$sysroot.debs

[ ! -e $sysroot/.complete ] || [ "$(cat $sysroot/.complete)" != "$programs" ] || exit 0
rm -rf $sysroot $debs
mkdir -p $debs/partial $sysroot
# shellcheck disable=SC2086
libs=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts \
	--no-breaks --no-replaces --no-enhances $programs |
	grep -E '^(lib[a-z0-9.+-]+|zlib1g)$' | grep -vE -- '-perl|libperl|-dbd-|-ldap$|-modules|^libc-bin$' | sort -u)
# shellcheck disable=SC2086
(cd $debs && apt-get -q -o APT::Sandbox::User="$(id -un)" download $programs $libs)
for deb in $debs/*.deb; do
	dpkg-deb -x "$deb" $sysroot
done
rm -rf $debs
echo "$programs" >$sysroot/.complete

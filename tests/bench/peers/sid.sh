#!/bin/sh
# Makes a Debian sid with podman, crun, pasta and iperf3 in .cache/peers/sid, from the
# mirror that this machine's apt uses, and prints the directory. Needs root. Does
# nothing when it is there with these packages, whatever their versions: remove it for others.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
cache=$root/.cache/peers
mkdir -p "$cache"
PATH=$PATH:/usr/sbin:/sbin
packages="podman crun conmon passt slirp4netns fuse-overlayfs uidmap catatonit netavark
	iperf3 iproute2 nftables util-linux util-linux-extra ca-certificates procps"
list=$(echo $packages)
if [ "$(cat "$cache/sid.list" 2>/dev/null)" = "$list" ] && [ -d "$cache/sid" ]; then
	echo "$cache/sid"
	exit
fi
[ "$(id -u)" = 0 ] || { echo "peers: a root of Debian sid needs root to make" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "peers: apt-get install debootstrap" >&2; exit 1; }
mirror=$(apt-get indextargets --format '$(ORIGIN) $(SITE)' 'Created-By: Packages' 2>/dev/null |
	sed -n 's/^Debian \(.*\)/\1/p' | grep -v security | head -n 1)
[ -n "$mirror" ] || { echo "peers: apt's sources name no Debian mirror" >&2; exit 1; }
echo "peers: Debian sid from $mirror" >&2
rm -rf "$cache/sid" "$cache/sid.list"
debootstrap --variant=minbase --include="$(echo $packages | tr ' ' ,)" sid "$cache/sid" "$mirror" \
	>"$cache/debootstrap.log" 2>&1 || { tail -n 20 "$cache/debootstrap.log" >&2; exit 1; }
rm -rf "$cache/sid/var/cache/apt/archives" "$cache/sid/var/lib/apt/lists"
echo "$list" >"$cache/sid.list"
echo "$cache/sid"

#!/bin/sh
# Installs what subpod and its tests need and is missing: the programs that run
# containers, and what the test images are built with. Debian and Ubuntu by apt;
# elsewhere it says what is missing. Safe to run again: it installs nothing twice.
#
#   tests/deps.sh         everything
#   tests/deps.sh run     only what the daemon needs at run time
#   tests/deps.sh vm      also what a virtual machine is made with
#   tests/deps.sh arm64   also what one of another architecture is made with
set -eu
cd "$(dirname "$0")/.."

# program:package, or a file that a package brings.
RUN="
  crun:crun runc:runc conmon:conmon fuse-overlayfs:fuse-overlayfs
  slirp4netns:slirp4netns newuidmap:uidmap catatonit:catatonit
  nft:nftables ip:iproute2 setpriv:util-linux mount:mount
  /etc/ssl/certs/ca-certificates.crt:ca-certificates"
BUILD="
  go:golang-go git:git make:make gcc:gcc /usr/include/stdlib.h:libc6-dev
  bzip2:bzip2 curl:curl pgrep:procps buildah:buildah
  /usr/lib/cni/bridge:containernetworking-plugins iptables:iptables
  pasta:passt iperf3:iperf3"
# util-linux of Debian 13 has moved ipcmk to a package of its own.
[ -x /usr/bin/ipcmk ] || BUILD="$BUILD ipcmk:util-linux-extra"
# Any Go that can fetch another one will do, from wherever it came.
PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin
export PATH

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"
	elif sudo -n true 2>/dev/null; then sudo "$@"
	else return 77
	fi
}

has() {
	case $1 in
	/*) [ -e "$1" ] ;;
	*) command -v "$1" >/dev/null 2>&1 ;;
	esac
}

missing=
wanted="$RUN $BUILD"
[ "${1-}" = run ] && wanted=$RUN
[ "${1-}" = vm ] && wanted="$wanted qemu-system-x86_64:qemu-system-x86 debootstrap:debootstrap mke2fs:e2fsprogs ssh:openssh-client"
[ "${1-}" = arm64 ] && wanted="$wanted qemu-system-aarch64:qemu-system-arm qemu-aarch64-static:qemu-user-static debootstrap:debootstrap mke2fs:e2fsprogs ssh:openssh-client"
for pair in $wanted; do
	has "${pair%%:*}" || missing="$missing ${pair#*:}"
done

if [ -n "$missing" ]; then
	echo "deps: missing:$missing"
	if ! command -v apt-get >/dev/null; then
		echo "deps: no apt-get here: install these packages (or what your distribution calls them), then run this again" >&2
		exit 1
	fi
	install="apt-get install -y --no-install-recommends$missing"
	export DEBIAN_FRONTEND=noninteractive
	# shellcheck disable=SC2086
	if as_root true; then
		as_root apt-get update -q >/dev/null
		as_root $install -q >.deps.log 2>&1 || { cat .deps.log >&2; rm -f .deps.log; exit 1; }
		rm -f .deps.log
	else
		printf 'deps: not root, and sudo asks for a password. Type:\n  sudo apt-get update && sudo %s\n' "$install" >&2
		exit 1
	fi
fi

# udev gives these two to everyone; a machine without udev leaves them to root.
for device in /dev/fuse /dev/net/tun; do
	if [ ! -e "$device" ]; then
		echo "deps: $device is missing: load its kernel module ('modprobe fuse', 'modprobe tun'), or pass the device to this container" >&2
		exit 1
	fi
	case $(stat -c %a "$device") in
	*6) ;;
	*) if ! as_root chmod 0666 "$device"; then
		printf 'deps: %s is not open to users. Type:\n  sudo chmod 0666 %s\n' "$device" "$device" >&2
		exit 1
	fi ;;
	esac
done

[ "${1-}" = run ] || tests/go.sh version

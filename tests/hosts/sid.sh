#!/bin/sh
# Runs a test binary of a package below tests/ on a host of its own: a Debian sid with the
# newest crun, conmon, passt and slirp4netns, as an ordinary user. The kernel is this
# machine's. Root is needed to enter it, and for nothing that the test does.
#
#   tests/hosts/sid.sh PACKAGE BINARY [ARG...]      (tests/hosts/sid.sh --versions)
set -eu
tree=$(cd "$(dirname "$0")/../.." && pwd)
[ "$(id -u)" = 0 ] || { echo "sid.sh: root is needed to enter another root" >&2; exit 77; }
sid=$("$tree/tests/bench/peers/sid.sh")
if [ "$1" = --versions ]; then
	exec chroot "$sid" dpkg-query -W crun conmon passt slirp4netns fuse-overlayfs uidmap
fi
package=$1 binary=$(realpath "$2")
shift 2
user=${SUBPOD_TEST_USER:-subpod}
"$tree/tests/user.sh" true # makes the account
uid=$(id -u "$user") gid=$(id -g "$user")
for file in passwd group subuid subgid; do
	sed -i "/^$user:/d" "$sid/etc/$file"
done
echo "$user:x:$uid:$gid::/var/tmp:/bin/sh" >>"$sid/etc/passwd"
echo "$user:x:$gid:" >>"$sid/etc/group"
for kind in uid gid; do grep "^$user:" "/etc/sub$kind" >>"$sid/etc/sub$kind"; done
mkdir -p "$sid/old" "$sid/src" "$sid/cache"
cp "$binary" "$sid/usr/local/bin/hosts.test"
cache=$(realpath "$tree/.cache")

# A real root, not a chroot: there the kernel makes no user namespaces. Nothing that is
# mounted here outlives it. The cache is where the tree looks for it, and nowhere else.
exec unshare --mount --propagation private --pid --fork --kill-child sh -ec '
	sid=$1 uid=$2 gid=$3 tree=$4 cache=$5 package=$6
	shift 6
	mount --bind "$sid" "$sid"
	mount --bind "$tree" "$sid/src"
	mount --bind "$cache" "$sid/cache"
	cd "$sid"
	mount -t proc proc proc
	mount --rbind /sys sys
	mount --rbind /dev dev
	mount -t tmpfs -o mode=755 tmpfs run
	mount -t tmpfs -o mode=1777 tmpfs tmp
	mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
	# The tree of a checkout may have a link for its cache.
	if [ -L src/.cache ]; then
		mkdir -p "./$(dirname "$cache")"
		ln -sfn /cache "./$cache" 2>/dev/null || :
	fi
	pivot_root . old
	umount -l /old
	cd "/src/tests/$package"
	exec env -i TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/var/tmp \
		setpriv --reuid "$uid" --regid "$gid" --init-groups --inh-caps=-all /src/tests/user.sh /usr/local/bin/hosts.test "$@"' \
	sh "$sid" "$uid" "$gid" "$tree" "$cache" "$package" "$@"

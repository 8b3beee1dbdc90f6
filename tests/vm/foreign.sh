#!/bin/sh
# Runs a command of a root directory with the programs of another architecture, by qemu-user.
# The kernel learns what runs them in a user namespace of the command's own (Linux 6.7), so
# that nothing changes for the machine. Needs root.
#
#   tests/vm/foreign.sh DIRECTORY COMMAND...
set -eu
qemu=$(command -v qemu-aarch64-static) || { echo "foreign.sh: no qemu-aarch64-static (qemu-user-static)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkfifo "$work/mapped"
mkdir "$work/binfmt"
# container=: debootstrap then makes no devices, which it cannot do here.
container=lxc unshare --user --mount --pid --fork --kill-child --propagation private sh -euc '
	read -r _ <"$1/mapped"
	mount -t binfmt_misc binfmt_misc "$1/binfmt"
	magic="\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00"
	mask="\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff"
	printf %s ":aarch64:M::$magic:$mask:$2:F" >"$1/binfmt/register"
	mount -t proc proc "$3/proc"
	root=$3
	shift 3
	exec chroot "$root" "$@"' sh "$work" "$qemu" "$@" &
pid=$!
until [ "$(readlink /proc/$pid/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do
	kill -0 $pid || exit 1
	sleep .05
done
for map in uid_map gid_map; do echo "0 0 65536" >/proc/$pid/$map; done
echo >"$work/mapped"
wait $pid

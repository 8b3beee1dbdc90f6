#!/bin/sh
# Measures subpod, containerd and podman beside each other: 'make bench-peers'.
#
#   tests/bench/peers/run.sh [flags of the test]
#
# podman lives in a Debian of its own, which takes root to make and to enter; an
# ordinary user measures without it. The results lie in .cache/user/peers; with
# WRITE=1 they become docs/performance.md's tables and charts.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
cache=$root/.cache/peers
bench=$cache/bench.test
cd "$root"
CGO_ENABLED=0 tests/go.sh test -c -buildvcs=false -tags "${TAGS-}" -o "$bench" ./tests/bench
agent=
clean() {
	status=$?
	trap - EXIT
	# The first process of its PID namespace takes all others with it. It has become
	# another user, so that the end of unshare does not reach it.
	if [ -n "$agent" ]; then
		for pid in $(cat "/proc/$agent/task/$agent/children" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
		wait "$agent" 2>/dev/null || true
	fi
	exit $status
}
trap clean EXIT
trap 'exit 130' INT; trap 'exit 143' TERM

if [ "$(id -u)" = 0 ] && sid=$("$root/tests/bench/peers/sid.sh"); then
	user=${SUBPOD_TEST_USER:-subpod}
	tests/user.sh true # makes the account
	uid=$(id -u "$user") gid=$(id -g "$user")
	for file in passwd group subuid subgid; do
		sed -i "/^$user:/d" "$sid/etc/$file"
	done
	echo "$user:x:$uid:$gid::/var/lib/bench:/bin/sh" >>"$sid/etc/passwd"
	echo "$user:x:$gid:" >>"$sid/etc/group"
	for kind in uid gid; do grep "^$user:" "/etc/sub$kind" >>"$sid/etc/sub$kind"; done
	rm -rf "$sid/var/lib/bench"
	mkdir -p "$sid/var/lib/bench" "$sid/old"
	chown "$uid:$gid" "$sid/var/lib/bench"
	# The test binary may lie where the user cannot reach.
	cp "$bench" "$sid/usr/local/bin/bench"
	SUBPOD_BENCH_PODMAN=subpod-bench-$$
	export SUBPOD_BENCH_PODMAN
	# A real root, not a chroot: there the kernel makes no user namespaces. The network
	# is the host's.
	unshare --mount --propagation private --pid --fork --kill-child sh -ec '
		mount --bind "$1" "$1"
		cd "$1"
		mount -t proc proc proc
		mount --rbind /sys sys
		mount --rbind /dev dev
		mount -t tmpfs -o mode=755 tmpfs run
		mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
		mkdir -p -m 0700 "run/user/$2"
		chown "$2:$3" "run/user/$2"
		pivot_root . old
		umount -l /old
		cd /var/lib/bench
		exec env -i HOME=/var/lib/bench XDG_RUNTIME_DIR="/run/user/$2" TMPDIR=/tmp PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
			setpriv --reuid "$2" --regid "$3" --init-groups --inh-caps=-all bench agent "$4"' \
		sh "$sid" "$uid" "$gid" "$SUBPOD_BENCH_PODMAN" </dev/null 2>"$cache/agent.log" &
	agent=$!
else
	echo "peers: podman is left out" >&2
fi
status=0
(cd tests/bench && "$bench" -test.v -test.timeout 60m -test.run '^TestBenchPeers$' -runs 20 -net-seconds 2 "$@") || status=$?
if [ "$status" = 0 ] && [ -n "${WRITE-}" ]; then
	cp .cache/user/peers/*.svg docs/performance/
	sed -i -e '/^<!-- bench-peers -->$/,/^<!-- end -->$/{//!d}' -e '/^<!-- bench-peers -->$/r .cache/user/peers/table.md' docs/performance.md
fi
exit $status

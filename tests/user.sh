#!/bin/sh
# Runs a command as an ordinary user with subordinate IDs, a home and an
# XDG_RUNTIME_DIR of its own, and sees to it that nothing stays behind.
#
#   tests/user.sh COMMAND [ARG...]          (also as: go test -exec tests/user.sh)
#   tests/user.sh --remove                  deletes the account that it has made
#
# Started by root, it becomes the user $SUBPOD_TEST_USER ("subpod"), made when
# missing. Started by anyone else it stays that user. Neither PAM nor systemd is
# needed. The command's status is its own status; it is 1 when the command
# succeeded but left processes or temporary files.
set -eu
user=${SUBPOD_TEST_USER:-subpod}
comment="subpod tests"
PATH=$PATH:/usr/sbin:/sbin
export PATH

say() { echo "user.sh: $*" >&2; }

# IDs enough for the node and for two pods with user namespaces of their own,
# whose ranges the kubelet puts at multiples of 65536.
count=${SUBPOD_TEST_IDS:-196608}

# next_range FILE: the first subordinate ID above all given ones.
next_range() {
	awk -F: 'BEGIN { n = 100000 } $2 + $3 > n { n = $2 + $3 } END { print n }' "$1" /dev/null
}

# room FILE FIRST: whether nobody else has an ID of FIRST up to FIRST + count.
room() {
	awk -F: -v me="$user" -v first="$2" -v count="$count" \
		'$1 != me && $2 < first + count && $2 + $3 > first { exit 1 }' "$1"
}

# give_range uid|gid: one range of count IDs. A smaller one that is there (useradd
# makes it, or an older version of this script) is widened in place where there is
# room: files of it may be around.
give_range() {
	file=/etc/sub$1
	own=$(awk -F: -v me="$user" '$1 == me { print $2 "-" $2 + $3 - 1 "-" $3 }' "$file")
	for range in $own; do
		[ "${range##*-}" -lt "$count" ] || return 0
	done
	# usermod refuses to change an account that runs something.
	if [ -n "$own" ] && pgrep -u "$user" >/dev/null; then
		say "$user keeps its small range of sub${1}s for now: it has processes"
		return 0
	fi
	first=${own%%-*}
	if [ -z "$first" ] || ! room "$file" "$first"; then
		first=$(next_range "$file")
	fi
	for range in $own; do
		usermod "--del-sub${1}s" "${range%-*}" "$user"
	done
	usermod "--add-sub${1}s" "$first-$((first + count - 1))" "$user"
}

make_user() {
	# One at a time: tests of several packages may start together.
	exec 9>/var/lock/subpod-test-user
	flock 9
	id "$user" >/dev/null 2>&1 ||
		useradd --create-home --shell /bin/sh --comment "$comment" "$user" >&2
	touch /etc/subuid /etc/subgid
	for kind in uid gid; do
		# The range of an account that someone else has made is theirs to widen.
		if [ "$(getent passwd "$user" | cut -d: -f5)" = "$comment" ] || ! grep -q "^$user:" "/etc/sub$kind"; then
			give_range "$kind"
		fi
	done
	exec 9>&-
}

if [ "${1-}" = --remove ]; then
	if [ "$(id -u)" = 0 ] && [ "$(getent passwd "$user" | cut -d: -f5)" = "$comment" ]; then
		userdel --remove "$user" 2>/dev/null
	fi
	exit 0
fi
[ $# -gt 0 ] || { say "usage: tests/user.sh COMMAND [ARG...]"; exit 2; }

root=false
if [ "$(id -u)" = 0 ] && grep -q '^ *0 *0 *4294967295$' /proc/self/uid_map; then
	root=true
	make_user
else
	user=$(id -un)
	if [ "$(id -u)" != 0 ] && ! grep -q -e "^$user:" -e "^$(id -u):" /etc/subuid 2>/dev/null &&
		! getsubids "$user" >/dev/null 2>&1; then
		say "$user has no subordinate IDs. Type:"
		say "  sudo usermod --add-subuids 100000-296607 --add-subgids 100000-296607 $user"
		exit 1
	fi
fi
uid=$(id -u "$user") gid=$(id -g "$user")

# Short paths: a unix socket's has at most 107 bytes. The run directory wants a
# tmpfs, the home a disk.
dir=$(mktemp -d /var/tmp/sp.XXXXXX)
base=/var/tmp
if ! $root && [ -w "${XDG_RUNTIME_DIR:-/nonexistent}" ]; then
	base=$XDG_RUNTIME_DIR
elif [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] && [ -w /dev/shm ]; then
	base=/dev/shm
fi
run=$(mktemp -d "$base/sp.XXXXXX")
mkdir "$dir/home" "$dir/tmp"

left() { # processes that carry our mark
	for p in /proc/[0-9]*; do
		[ "$p" = /proc/$$ ] && continue
		if grep -qsza "^SUBPOD_TEST_DIR=$dir\$" "$p/environ"; then echo "${p#/proc/}"; fi
	done
}

clean() {
	status=$?
	trap - EXIT
	pids=$(left)
	# What was killed takes its time to end on a busy machine.
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		[ -n "$pids" ] || break
		sleep 0.5
		pids=$(left)
	done
	if [ -n "$pids" ]; then
		say "still running after $name:"
		for pid in $pids; do
			say "  $pid $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null || true)"
			kill -KILL "$pid" 2>/dev/null || true
		done
		[ "$status" != 0 ] || status=1
	fi
	if [ -n "$(ls -A "$dir/tmp" 2>/dev/null)" ]; then
		say "temporary files left by $name: $(ls -A "$dir/tmp" | head -n 5 | tr '\n' ' ')"
		[ "$status" != 0 ] || status=1
	fi
	# Files of subordinate users can be removed only as root over them.
	rm -rf "$dir" "$run" 2>/dev/null || unshare --map-root-user --map-auto rm -rf "$dir" "$run" || status=1
	exit "$status"
}
name=$(basename "$1")
trap clean EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

# Tests that build something do so in a tree that may be another user's, and with
# caches outside the new home.
if ! $root && [ -n "${HOME:-}" ]; then
	export GOPATH="${GOPATH:-$HOME/go}" GOCACHE="${GOCACHE:-$HOME/.cache/go-build}"
fi
export GOFLAGS="${GOFLAGS:-} -buildvcs=false -modcacherw"

SUBPOD_TEST_DIR=$dir
TMPDIR=$dir/tmp
SUBPOD_USER_BUS=${DBUS_SESSION_BUS_ADDRESS:-}
if [ -z "$SUBPOD_USER_BUS" ] && ! $root && [ -S "${XDG_RUNTIME_DIR:-}/bus" ]; then
	SUBPOD_USER_BUS=unix:path=$XDG_RUNTIME_DIR/bus
fi
unset XDG_DATA_HOME XDG_CONFIG_HOME XDG_STATE_HOME XDG_CACHE_HOME DBUS_SESSION_BUS_ADDRESS
[ -z "$SUBPOD_USER_BUS" ] || export DBUS_SESSION_BUS_ADDRESS="$SUBPOD_USER_BUS"
unset SUBPOD_USER_BUS
export SUBPOD_TEST_DIR TMPDIR

enter() {
	HOME=$dir/home XDG_RUNTIME_DIR=$run USER=$user LOGNAME=$user SHELL=/bin/sh "$@"
}

if ! $root; then
	chmod 0700 "$dir" "$run"
	enter "$@"
	exit
fi

chown -R "$uid:$gid" "$dir" "$run"
chmod 0700 "$dir/home" "$run"
become="setpriv --reuid $uid --regid $gid --init-groups --inh-caps=-all --pdeathsig TERM"

# The source tree may lie in a directory of root's. Then it is shown at a place
# that the user can reach, in a mount namespace of the command's own. So may a
# test binary that go test has built: it is copied.
tree=$(cd "$(dirname "$0")/.." && pwd)
reachable=false
if $become test -r "$tree/go.mod"; then reachable=true; fi
if [ -f "$1" ]; then
	command=$(realpath "$1")
	shift
	case $command in
	"$tree"/*) $reachable || command=$dir/tree${command#"$tree"} ;;
	*) if ! $become test -x "$command"; then
		mkdir "$dir/cmd"
		cp "$command" "$dir/cmd/$name"
		command=$dir/cmd/$name
	fi ;;
	esac
	set -- "$command" "$@"
fi
# What its tests build by Go is kept for the next time.
at=$tree
$reachable || at=$dir/tree
mkdir -p "$tree/.cache/user" && chown "$uid:$gid" "$tree/.cache/user"
export GOCACHE="$at/.cache/user/build" GOMODCACHE="$at/.cache/user/mod"
if $reachable; then
	enter $become "$@"
	exit
fi
mkdir "$dir/tree"
here=$(pwd)
case $here in
"$tree"*) here=$dir/tree${here#"$tree"} ;;
*) here=/ ;;
esac
export SUBPOD_TREE_AT="$dir/tree" SUBPOD_TREE="$tree" SUBPOD_CWD="$here"
enter unshare --mount --propagation private sh -c '
	mount --bind "$SUBPOD_TREE" "$SUBPOD_TREE_AT" && cd "$SUBPOD_CWD" && unset SUBPOD_TREE SUBPOD_TREE_AT SUBPOD_CWD OLDPWD && exec "$@"' \
	sh $become "$@"

#!/bin/sh
# A new user's path: a Debian with nothing on it, a clone of this tree, and two
# commands. Then everything that can be missing is taken away in turn: what is
# said must name the command that helps, and that command must help.
#
#   tests/fresh.sh              (make test-fresh; needs root and debootstrap)
#   tests/fresh.sh --test       "make test" in that Debian instead
#   tests/fresh.sh --shell      a shell in it
#
# With SUBPOD_FRESH_WARM=1 what was compiled is kept for the next run.
#
# The Debian lies in .cache/fresh, and is made once; the runs happen in a copy of
# it that is removed again, mounts first. The mirror, its keys and the certificates
# are those of this machine's apt.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache/fresh
suite=${SUBPOD_FRESH_SUITE:-bookworm}
tools="git make sudo ca-certificates"

say() { printf '\n== %s\n' "$*"; }
fail() { echo "fresh.sh: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "needs root: sudo $0"
command -v debootstrap >/dev/null || fail "needs debootstrap: apt-get install debootstrap"

# The first mirror that apt knows for a Debian.
mirror() {
	apt-get indextargets --format '$(ORIGIN) $(SITE)' 'Created-By: Packages' 2>/dev/null |
		sed -n 's/^Debian \(.*\)/\1/p' | grep -v security | head -n 1
}

base=$cache/$suite.tar
if [ ! -e "$base" ]; then
	say "a Debian ($suite) from $(mirror)"
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/make.XXXXXX")
	debootstrap --variant=minbase --include="$(echo $tools | tr ' ' ,)" "$suite" "$work" "$(mirror)" >"$cache/debootstrap.log" 2>&1 ||
		{ tail -n 20 "$cache/debootstrap.log" >&2; rm -rf "$work"; exit 1; }
	# Certificates that this machine trusts beside Debian's own.
	mkdir -p "$work/usr/local/share/ca-certificates"
	find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$work/usr/local/share/ca-certificates/" \;
	chroot "$work" update-ca-certificates >/dev/null 2>&1
	tar -C "$work" -cf "$base.new" . && mv "$base.new" "$base"
	rm -rf "$work"
fi

# The machine: a copy of it, in a mount and a PID namespace of its own, so that
# everything goes when its first process does. Its root is a real one: in a chroot
# the kernel makes no user namespaces.
mkdir -p "$cache"
machine=$(mktemp -d "$cache/run.XXXXXX")
init=
clean() {
	status=$?
	trap - EXIT
	[ -z "$init" ] || { kill -KILL "$init" 2>/dev/null || true; }
	wait
	if grep -q " $machine[ /]" /proc/self/mountinfo; then
		echo "fresh.sh: mounts are left below $machine" >&2
		exit 1
	fi
	rm -rf --one-file-system "$machine"
	exit $status
}
trap clean EXIT
trap 'exit 130' INT; trap 'exit 143' TERM
tar -C "$machine" -xf "$base"
chmod 0755 "$machine"
cp -L /etc/resolv.conf "$machine/etc/resolv.conf"

# What a clone of the committed tree brings. Go is new, as no Debian has it yet:
# the README asks for it.
git -C "$root" bundle create -q "$machine/subpod.bundle" HEAD
goroot=$("$root/tests/go.sh" env GOROOT)
mkdir -p "$machine/usr/local/go" "$machine/modules" "$machine/root/.config/go" "$machine/root/.cache/go-build"
cp -a "$goroot/." "$machine/usr/local/go"
# Modules that are here need not be fetched again: a proxy made of files.
MODULES=$("$root/tests/go.sh" env GOMODCACHE)/cache/download
printf 'GOPROXY=file:///modules,%s\nGOFLAGS=-buildvcs=false\n' "$("$root/tests/go.sh" env GOPROXY)" >"$machine/root/.config/go/env"
# A warm compiler cache makes repeated runs short; it says nothing about packages.
WARM=
if [ -n "${SUBPOD_FRESH_WARM-}" ]; then
	WARM=$cache/go-build
	mkdir -p "$WARM"
fi
# What a person answers with y.
echo 'APT::Get::Assume-Yes "true";' >"$machine/etc/apt/apt.conf.d/90yes"

export MODULES WARM
unshare --mount --propagation private --pid --fork --kill-child sh -ec '
	mount --bind "$1" "$1"
	cd "$1"
	mount -t proc proc proc
	mount --rbind /sys sys
	mount -t tmpfs -o mode=755 dev dev
	mkdir dev/pts dev/shm dev/net old
	mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
	mount -t tmpfs -o mode=1777 shm dev/shm
	ln -s /proc/self/fd dev/fd; ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr; ln -s pts/ptmx dev/ptmx
	for d in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
		set -- $d
		mknod -m 0666 "dev/$1" c "$2" "$3"
	done
	# As a machine without udev has them: for root alone.
	mknod -m 0600 dev/fuse c 10 229
	mknod -m 0600 dev/net/tun c 10 200
	[ ! -d "$MODULES" ] || mount --bind -o ro "$MODULES" modules
	[ -z "$WARM" ] || mount --bind "$WARM" root/.cache/go-build
	pivot_root . old
	umount -l /old
	rmdir /old
	: >/ready
	# A shell waits for the processes that are left to it, as an init does.
	while :; do sleep 3600 & wait $!; done' sh "$machine" </dev/null &
tries=0
until [ -e "$machine/ready" ]; do
	tries=$((tries + 1))
	[ $tries -lt 100 ] && kill -0 $! 2>/dev/null || fail "the machine does not start"
	sleep 0.1
done
init=$(cat "/proc/$!/task/$!/children")
init=${init%% *}

inside() { nsenter --target "$init" --mount --pid env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb "$@"; }
user() { inside setpriv --reuid ann --regid ann --init-groups env HOME=/home/ann USER=ann LOGNAME=ann XDG_RUNTIME_DIR=/run/user/ann PATH=/home/ann/subpod/bin:/usr/local/bin:/usr/bin:/bin "$@"; }

if [ "${1-}" = --shell ]; then inside sh; exit; fi

say "the first command: git clone"
inside git -c advice.detachedHead=false clone -q /subpod.bundle /root/subpod
for p in crun conmon slirp4netns newuidmap fuse-overlayfs nft; do
	! inside sh -c "command -v $p" >/dev/null || fail "$p is there already"
done
start=$(date +%s)
if [ "${1-}" = --test ]; then
	say "the second command: make test, with none of the packages installed"
	inside make -C /root/subpod test >"$cache/test.log" 2>&1 || { tail -n 40 "$cache/test.log"; fail "make test failed: $cache/test.log"; }
	echo "make test has passed after $(($(date +%s) - start)) s"
	exit
fi
say "the second command: make demo, with none of the packages installed"
inside make -C /root/subpod demo >"$cache/demo.log" 2>&1 || { tail -n 40 "$cache/demo.log"; fail "make demo failed: $cache/demo.log"; }
grep -q "hello from demo" "$cache/demo.log" || fail "make demo has shown no page"
echo "a pod has served a page after $(($(date +%s) - start)) s"

# A user of the machine, who starts subpod by hand.
inside useradd --create-home --shell /bin/sh ann
inside install -d -o ann -g ann -m 0700 /run/user/ann
inside install -d -o ann -g ann /home/ann/subpod
inside cp -r /root/subpod/bin /home/ann/subpod/
inside cp /root/subpod/.cache/demo/busybox.tar /home/ann/busybox.tar
inside chmod 0644 /home/ann/busybox.tar

# run: the user's whole session: doctor must agree, and a container must run.
run() {
	user subpod doctor -q >"$machine/tmp/doctor.out" 2>&1 && doctor=0 || doctor=$?
	user sh -c 'subpod daemon >/tmp/daemon.out 2>&1 &
		daemon=$!
		until subpod info >/dev/null 2>&1; do kill -0 $daemon 2>/dev/null || break; sleep 0.1; done
		kill -0 $daemon 2>/dev/null || exit 9
		subpod load oci-archive:/home/ann/busybox.tar >/dev/null && subpod run --rm busybox:latest echo it runs
		status=$?
		kill $daemon; wait $daemon
		exit $status' >"$machine/tmp/run.out" 2>&1
}

# broken WHAT TEXT FIX: with WHAT spoilt, the daemon and doctor must say TEXT, print
# FIX (a pattern), and a container must run once that has been typed.
broken() {
	what=$1 text=$2 fix=$3
	say "$what"
	if run; then cat "$machine/tmp/run.out"; fail "$what: a container runs all the same"; fi
	[ "$doctor" = 1 ] || { cat "$machine/tmp/doctor.out"; fail "$what: doctor's exit code is $doctor, want 1"; }
	grep -h "$text" "$machine/tmp/daemon.out" "$machine/tmp/run.out" | sort -u | head -n 3 | cut -c 1-200
	grep -qh "$text" "$machine/tmp/daemon.out" "$machine/tmp/run.out" || { cat "$machine/tmp/daemon.out" "$machine/tmp/run.out"; fail "$what: the daemon does not say '$text'"; }
	command=$(sed -n "s/^ *\\($fix.*\\)\$/\\1/p" "$machine/tmp/doctor.out" | head -n 1)
	[ -n "$command" ] || { cat "$machine/tmp/doctor.out"; fail "$what: doctor does not print '$fix'"; }
	printf '$ %s\n' "$command"
	printf '%s\n' "$command" >"$machine/tmp/fix.sh"
	inside sh -e /tmp/fix.sh >"$machine/tmp/fix.out" 2>&1 || { cat "$machine/tmp/fix.out"; fail "$what: the command failed"; }
	run || { cat "$machine/tmp/run.out" "$machine/tmp/daemon.out"; fail "$what: no container runs after the command"; }
	echo "works"
}

say "as it is now"
run || { cat "$machine/tmp/run.out" "$machine/tmp/daemon.out"; fail "no container runs"; }
grep "it runs" "$machine/tmp/run.out"

say "no subordinate IDs: one ID must do, and be said"
inside sh -c 'cp /etc/subuid /etc/subuid.old; cp /etc/subgid /etc/subgid.old; sed -i /^ann:/d /etc/subuid /etc/subgid'
run || { cat "$machine/tmp/run.out" "$machine/tmp/daemon.out"; fail "nothing runs with one ID"; }
grep -o "the node has one user and one group ID" "$machine/tmp/daemon.out" || fail "the daemon does not say that there is one ID"
command=$(sed -n 's/^ *\(sudo usermod .*\)$/\1/p' "$machine/tmp/doctor.out" | head -n 1)
printf '$ %s\n' "$command"
inside sh -c "$command" || fail "the command failed"
user subpod doctor | grep "^ok  *subordinate IDs" || fail "doctor is not content"

inside apt-get -q -y remove uidmap >/dev/null 2>&1
broken "no newuidmap" "newuidmap is not installed" "sudo apt install uidmap"
inside chmod u-s /usr/bin/newuidmap
broken "newuidmap without setuid" "neither setuid root" "sudo chmod u+s"
inside chmod 0600 /dev/net/tun
broken "/dev/net/tun for root alone" "/dev/net/tun cannot be used" "sudo chmod 0666 \\/dev\\/net\\/tun"
inside chmod 0600 /dev/fuse
broken "/dev/fuse for root alone" "/dev/fuse" "sudo chmod 0666 \\/dev\\/fuse"
say "no slirp4netns, no pasta: gvisor-tap-vsock must do, and be said"
inside apt-get -q -y remove slirp4netns passt >/dev/null 2>&1
run || { cat "$machine/tmp/run.out" "$machine/tmp/daemon.out"; fail "nothing runs without slirp4netns"; }
grep -o "slirp4netns is not installed; gvisor-tap-vsock is next" "$machine/tmp/daemon.out" || fail "the daemon does not say which uplink it takes"
inside rm /home/ann/subpod/bin/subpod-node-gvisor
for p in slirp4netns crun conmon fuse-overlayfs; do
	inside apt-get -q -y remove $p >/dev/null 2>&1
	broken "no $p" "$p" "sudo apt install $p"
done

say "done: $suite, everything said and mended"

#!/bin/sh
# Runs a test binary on hosts of their own, which are network namespaces: N hosts on one
# bridge, at 192.0.2.1 and on, with an ordinary user each, and some latency where the
# kernel has netem. Root is needed for that, and for nothing that the test does.
#
#   tests/kubernetes/hosts.sh N BINARY [ARG...]    with -host 1 … N and -shared DIR
#
# The binary of host 1 is the test; the others serve it until it ends. In DIR/network it can
# ask for "cut N" and "join N": N's link is down, and up again; DIR/network.done has the
# last line that was done.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
count=$1 binary=$(realpath "$2")
shift 2
[ "$(id -u)" = 0 ] || { echo "hosts.sh: root is needed to make hosts" >&2; exit 77; }
PATH=$PATH:/usr/sbin:/sbin
shared=$(mktemp -d /var/tmp/sh.XXXXXX)
chmod 1777 "$shared"
pids= spaces=

clean() {
	status=$?
	trap - EXIT
	touch "$shared/end"
	for pid in $pids; do
		wait "$pid" || status=1
	done
	for pid in $spaces; do
		kill "$pid" 2>/dev/null || :
	done
	rm -rf "$shared"
	exit "$status"
}
trap clean EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

# space: a network namespace; its process is $space.
space() {
	unshare --net sleep infinity &
	space=$!
	spaces="$spaces $space"
	while [ "$(readlink "/proc/$space/ns/net")" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
	nsenter --net="/proc/$space/ns/net" ip link set lo up
}
space
switch=$space
in_switch() { nsenter --net="/proc/$switch/ns/net" "$@"; }
in_switch ip link add hosts type bridge
in_switch ip address add 192.0.2.254/24 dev hosts
in_switch ip link set hosts up

for n in $(seq "$count"); do
	space
	in_switch ip link add "host$n" type veth peer name eth0 netns "$space"
	in_switch ip link set "host$n" master hosts up
	in_host() { nsenter --net="/proc/$space/ns/net" "$@"; }
	in_host ip address add "192.0.2.$n/24" dev eth0
	in_host ip link set eth0 up
	in_host ip route add default via 192.0.2.254
	in_host tc qdisc add dev eth0 root netem delay 1ms 2>/dev/null || echo "hosts.sh: no latency: the kernel has no netem" >&2
	(
		cd "$here"
		[ "$n" = 1 ] || exec >"$shared/host$n.log" 2>&1
		export SUBPOD_TEST_USER="subpod-kubernetes$n"
		exec nsenter --net="/proc/$space/ns/net" "$here/../user.sh" "$binary" -host "$n" -shared "$shared" "$@"
	) &
	if [ "$n" = 1 ]; then test=$!; else pids="$pids $!"; fi
done

# What the test asks of the network.
last=
while kill -0 "$test" 2>/dev/null; do
	asked=$(tail -n 1 "$shared/network" 2>/dev/null || :)
	if [ "$asked" != "$last" ]; then
		set -- $asked
		case $1 in
		cut) in_switch ip link set "host$2" down ;;
		join) in_switch ip link set "host$2" up ;;
		esac
		last=$asked
		echo "$last" >"$shared/network.new"
		mv "$shared/network.new" "$shared/network.done"
	fi
	sleep 0.1
done
status=0
wait "$test" || status=$?
touch "$shared/end"
for pid in $pids; do
	wait "$pid" || status=1
done
pids=
if [ "$status" != 0 ]; then
	for n in $(seq 2 "$count"); do
		echo "--- host $n:"
		tail -n 150 "$shared/host$n.log"
	done
fi
exit "$status"

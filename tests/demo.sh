#!/bin/sh
# A pod from nothing: 'make demo' has installed what is missing and built
# bin/subpod. This starts the daemon as an ordinary user, gets an image, runs a
# pod, reads its log, runs a command in it, fetches a page from it, and takes
# everything away again.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
image=docker.io/library/busybox:latest
archive=$root/.cache/demo/busybox.tar

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*" >&2; "$@"; }
fail() { echo "demo: $*" >&2; exit 1; }

# An image without a registry: busybox as the distribution ships it.
make_archive() {
	[ -e "$archive" ] && return
	say "no registry answers: making an image from the package busybox-static"
	mkdir -p "$root/.cache/demo" && work=$(mktemp -d "$root/.cache/demo/XXXXXX")
	(cd "$work" && apt-get -q -o APT::Sandbox::User="$(id -un)" download busybox-static && dpkg-deb -x ./*.deb .) ||
		fail "cannot download busybox-static: is the package archive reachable?"
	busybox=$(find "$work" -path "*bin/busybox" -type f -perm -100)
	CGO_ENABLED=0 tests/go.sh run ./tests/images archive -busybox "$busybox" -o "$archive"
	rm -rf "$work"
}

if [ "${1-}" != --inside ]; then
	make --no-print-directory .cache/bin/crictl
	# Any answer will do, also "who are you?".
	if curl -sS -m 10 -o /dev/null https://registry-1.docker.io/v2/ 2>/dev/null; then pull=yes; else
		pull=no
		make_archive
	fi
	exec tests/user.sh tests/demo.sh --inside $pull
fi

pull=$2
export PATH="$root/bin:$root/.cache/bin:$PATH"
socket=$XDG_RUNTIME_DIR/subpod/subpod.sock
export CONTAINER_RUNTIME_ENDPOINT="unix://$socket" IMAGE_SERVICE_ENDPOINT="unix://$socket"
export CRI_CONFIG_FILE="$HOME/crictl.yaml"
printf 'runtime-endpoint: unix://%s\nimage-endpoint: unix://%s\ntimeout: 60\n' "$socket" "$socket" >"$CRI_CONFIG_FILE"
log=$HOME/daemon.log

say "the daemon, as $(id -un) (uid $(id -u))"
subpod daemon >"$log" 2>&1 &
daemon=$!
finish() {
	status=$?
	trap - EXIT
	if [ $status != 0 ]; then
		echo "demo: failed; the end of the daemon's log:" >&2
		tail -n 20 "$log" >&2
	fi
	kill -TERM $daemon 2>/dev/null && wait $daemon || true
	exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM
tries=0
until crictl version >/dev/null 2>&1; do
	kill -0 $daemon 2>/dev/null || fail "the daemon has ended"
	tries=$((tries + 1))
	[ $tries -lt 100 ] || fail "the daemon does not serve"
	sleep 0.1
done
show crictl version

say "an image"
if [ "$pull" = yes ]; then
	show crictl pull $image
else
	show subpod load "oci-archive:$archive"
fi
show crictl images

say "a pod with a web server in it, its port 80 on the host's port"
port=18080
while curl -s -m 1 -o /dev/null "http://127.0.0.1:$port/"; [ $? != 7 ]; do port=$((port + 1)); done
mkdir -p "$HOME/logs"
cat >"$HOME/pod.json" <<JSON
{"metadata": {"name": "demo", "namespace": "default", "uid": "demo"}, "hostname": "demo",
 "log_directory": "$HOME/logs", "linux": {},
 "port_mappings": [{"protocol": 0, "container_port": 80, "host_port": $port}]}
JSON
cat >"$HOME/container.json" <<JSON
{"metadata": {"name": "web"}, "image": {"image": "$image"}, "log_path": "web.log", "linux": {},
 "labels": {"io.kubernetes.pod.name": "demo", "io.kubernetes.pod.namespace": "default"},
 "command": ["sh", "-c", "mkdir /www; echo \"hello from \$(hostname), \$(id -un) in a pod of an ordinary user\" >/www/index.html; echo ready; exec httpd -f -vv -p 80 -h /www"]}
JSON
pod=$(show crictl runp "$HOME/pod.json")
container=$(show crictl create "$pod" "$HOME/container.json" "$HOME/pod.json")
show crictl start "$container" >/dev/null
show crictl pods
show crictl ps

say "a command in it"
show crictl exec -s "$container" sh -c 'id; ip -4 address show eth0 | grep inet; cat /proc/self/uid_map'

say "a page from it"
tries=0
until page=$(curl -sf -m 5 "http://127.0.0.1:$port/"); do
	tries=$((tries + 1))
	[ $tries -lt 50 ] || fail "no page from port $port"
	sleep 0.1
done
printf '$ curl http://127.0.0.1:%s/\n%s\n' "$port" "$page"
case $page in "hello from demo"*) ;; *) fail "not the page that the pod serves" ;; esac

say "its log"
show crictl logs "$container"

say "away with it"
show crictl stopp "$pod"
show crictl rmp "$pod"
kill -TERM $daemon
wait $daemon || fail "the daemon ended with status $?"
daemon=0
trap - EXIT
echo
echo "Done: nothing is left."

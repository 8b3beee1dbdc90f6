#!/bin/sh
# Records the state of a node as the programs of COMMIT write it, for testdata: pods that
# run, have ended, were stopped, are supervised, with what their records can hold. The node
# ends as by a power cut, so that the last changes are in the journal only. Root is needed
# for a home whose name is no machine's own, and for nothing that subpod does.
#
#   tests/former/record.sh COMMIT       testdata/COMMIT.tar.gz (BIN=DIR: with its programs)
#
# "make test-images" makes the image.
set -eu
if [ "${1-}" != --inside ]; then
	here=$(cd "$(dirname "$0")" && pwd)
	root=$(cd "$here/../.." && pwd)
	commit=$1
	work=$(mktemp -d /var/tmp/former.XXXXXX)
	trap 'rm -rf "$work"' EXIT
	mkdir -p "$work/home/pod" "$work/bin" "$work/source"
	if [ -n "${BIN-}" ]; then cp "$BIN"/* "$work/bin/"; else
		tags=$(sed -n 's/^TAGS *:= //p' "$root/Makefile")
		git -C "$root" archive "$commit" | tar -x -C "$work/source"
		for program in subpod subpod-server subpod-node subpod-monitor; do
			[ ! -d "$work/source/cmd/$program" ] || (cd "$work/source" && CGO_ENABLED=0 "$root/tests/go.sh" build -buildvcs=false -trimpath \
				-tags "$tags" -ldflags "-s -w -X main.version=$(cat VERSION 2>/dev/null || echo 0.1.0-dev)+$commit" -o "../bin/$program" "./cmd/$program")
		done
	fi
	cp "$root/.cache/images/made/busybox.oci.tar" "$work/image.tar"
	cp "$0" "$work/record.sh"
	"$root/tests/user.sh" true # makes the account
	user=${SUBPOD_TEST_USER:-subpod}
	chown -R "$user:" "$work/home/pod"
	chmod 755 "$work"
	unshare --mount --propagation private sh -c '
		set -e
		mount --bind "$1/home" /home
		mkdir -p /run/user
		mount -t tmpfs run /run/user
		mkdir -m 700 /run/user/1000
		chown "$2:" /run/user/1000
		mount --bind "$1" /opt
		exec setpriv --reuid "$2" --regid "$2" --init-groups --inh-caps=-all env -i HOME=/home/pod USER="$2" LOGNAME="$2" \
			XDG_RUNTIME_DIR=/run/user/1000 PATH=/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin sh /opt/record.sh --inside' sh "$work" "$user"
	# What is kept of images is not subpod's own format.
	cd "$work/home/pod/.local/share/subpod"
	find . -type f \( -name 'state.db*' ! -name '*.reserve' -o -path './net/networks/*' -o -path './volumes/.info/*' -o -name record.json \) -print |
		LC_ALL=C sort | tar -c --owner=0 --group=0 --numeric-owner --mtime=@0 --mode=u=rw,go= -T - | gzip -9n >"$here/testdata/$commit.tar.gz"
	exit
fi

cd "$HOME"
subpod daemon >daemon.log 2>&1 &
daemon=$!
tries=0
until subpod ps >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 150 ] || { cat daemon.log >&2; exit 1; }
	sleep .2
done
subpod load oci-archive:/opt/image.tar
has() { subpod "$@" --help 2>&1 | grep -q -e "$flag"; }
sleeper="busybox sleep 100000"
echo hello >note
subpod run -d --name web -p 18080:8080 -l app=web -e MODE=production -m 64m -v "$HOME/note:/note:ro" -v kept:/kept -w /tmp -u 1000:1000 busybox httpd -f -p 8080
subpod run --name ended busybox sh -c 'echo out; exit 7' || true
subpod run -d --name plain --network none --read-only --hostname other --cap-drop ALL $sleeper
subpod run -d --name stopped $sleeper
subpod stop stopped
flag=--restart
if has run; then
	subpod run -d --name always --restart always $sleeper
	subpod run -d --name failing --restart on-failure:1 busybox sh -c 'exit 3'
fi
flag=--health-cmd
if has run; then subpod run -d --name healthy --health-cmd true --restart unless-stopped $sleeper; fi
flag='network create'
if has network; then
	subpod network create back
	subpod run -d --name db --network back --network-alias data $sleeper
fi
cat >job.yaml <<YAML
apiVersion: v1
kind: Pod
metadata: {name: job, labels: {app: job}, annotations: {note: "1"}}
spec:
  restartPolicy: OnFailure
  initContainers:
  - {name: first, image: busybox, command: [sh, -c, "exit 0"]}
  containers:
  - name: main
    image: busybox
    command: [sleep, "100000"]
    env: [{name: A, value: b}]
    resources: {limits: {memory: 32Mi, cpu: 250m}, requests: {cpu: 100m}}
    ports: [{containerPort: 80, hostPort: 18081}]
    volumeMounts: [{name: tmp, mountPath: /scratch}]
  - {name: side, image: busybox, command: [sleep, "100000"]}
  volumes: [{name: tmp, emptyDir: {}}]
YAML
subpod play --detach job.yaml
sleep 3 # "failing" has failed for good, and all is in the database
subpod ps -a 2>/dev/null || subpod ps
subpod run -d --name last $sleeper
kill -KILL $daemon
wait $daemon || true
sleep 1

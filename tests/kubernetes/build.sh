#!/bin/sh
# Builds the parts of Kubernetes that tests/kubernetes runs, as pinned in suite, coredns,
# kuberouter and flannel, from the Go module proxy: .cache/kubernetes/VERSION/bin. What is
# there already is not built again. The first time takes a quarter of an hour and more.
#
#   tests/kubernetes/build.sh            builds, and prints the directory
#   tests/kubernetes/build.sh --node-e2e builds what the node e2e suite needs instead
#   tests/kubernetes/build.sh --where    prints the directory only
#   tests/kubernetes/build.sh --addons   prints the images' names of kube-router and flannel
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# pinned GO.MOD MODULE: its version.
pinned() { awk -v module="$2" '$1 == module && $2 ~ /^v/ { print $2 }' "$here/$1/go.mod"; }
version=$(pinned suite k8s.io/kubernetes)
bin=$root/.cache/kubernetes/$version/bin
[ "${1-}" = --where ] && { echo "$bin"; exit; }
if [ "${1-}" = --addons ]; then
	echo "docker.io/cloudnativelabs/kube-router:$(pinned kuberouter github.com/cloudnativelabs/kube-router/v2)"
	echo "ghcr.io/flannel-io/flannel:$(pinned flannel github.com/flannel-io/flannel)"
	exit
fi
mkdir -p "$bin"

# What the programs say of themselves: kubeadm compares them.
stamp=k8s.io/component-base/version
minor=$(echo "$version" | cut -d. -f2)
ldflags="-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor -X $stamp.gitTreeState=clean -X $stamp.gitCommit=unknown -X $stamp.buildDate=1970-01-01T00:00:00Z"

# build MODULE NAME PACKAGE: a program, or the package's tests where NAME ends in .test.
build() {
	[ -x "$bin/$2" ] && return
	echo "building $2 $3" >&2
	what=build
	case $2 in *.test) what="test -c -vet=off" ;; esac
	# One of flannel's backends, which is not used here, is C.
	cgo=0
	[ "$1" != flannel ] || cgo=1
	# shellcheck disable=SC2086
	(cd "$here/$1" && CGO_ENABLED=$cgo GOFLAGS= "$root/tests/go.sh" $what -buildvcs=false -trimpath -ldflags "$ldflags" -o "$bin/$2.new" "$3")
	mv "$bin/$2.new" "$bin/$2"
}
build suite kubelet k8s.io/kubernetes/cmd/kubelet
build suite agnhost k8s.io/kubernetes/test/images/agnhost
if [ "${1-}" = --node-e2e ]; then
	build suite ginkgo github.com/onsi/ginkgo/v2/ginkgo
	build suite e2e_node.test k8s.io/kubernetes/test/e2e_node
	echo "$bin"
	exit
fi
build suite kubeadm k8s.io/kubernetes/cmd/kubeadm
build suite kubectl k8s.io/kubernetes/cmd/kubectl
build suite kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
build suite kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
build suite kube-scheduler k8s.io/kubernetes/cmd/kube-scheduler
build suite kube-proxy k8s.io/kubernetes/cmd/kube-proxy
build suite etcd go.etcd.io/etcd/server/v3
build coredns coredns .
build kuberouter kube-router github.com/cloudnativelabs/kube-router/v2/cmd/kube-router
build flannel flanneld github.com/flannel-io/flannel

# The next version of kubeadm, as far as it can tell: what it upgrades a cluster with.
next=${version%.*}.$((${version##*.} + 1))
ldflags=$(echo "$ldflags" | sed "s/$version/$next/")
build suite kubeadm-next k8s.io/kubernetes/cmd/kubeadm
echo "$next" >"$bin/next.version"
echo "$bin"

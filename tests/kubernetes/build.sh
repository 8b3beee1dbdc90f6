#!/bin/sh
# Builds the parts of Kubernetes that tests/kubernetes runs, as pinned in suite and
# coredns, from the Go module proxy: .cache/kubernetes/VERSION/bin. What is there
# already is not built again. The first time takes a quarter of an hour and more.
#
#   tests/kubernetes/build.sh            builds, and prints the directory
#   tests/kubernetes/build.sh --node-e2e builds what the node e2e suite needs instead
#   tests/kubernetes/build.sh --where    prints the directory only
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
version=$(awk '$1 == "k8s.io/kubernetes" && $2 ~ /^v/ { print $2 }' "$here/suite/go.mod")
coredns=$(awk '$1 == "github.com/coredns/coredns" && $2 ~ /^v/ { print $2 }' "$here/coredns/go.mod")
bin=$root/.cache/kubernetes/$version/bin
[ "${1-}" = --where ] && { echo "$bin"; exit; }
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
	# shellcheck disable=SC2086
	(cd "$here/$1" && CGO_ENABLED=0 GOFLAGS= "$root/tests/go.sh" $what -buildvcs=false -trimpath -ldflags "$ldflags" -o "$bin/$2.new" "$3")
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

# The next version of kubeadm, as far as it can tell: what it upgrades a cluster with.
next=${version%.*}.$((${version##*.} + 1))
ldflags=$(echo "$ldflags" | sed "s/$version/$next/")
build suite kubeadm-next k8s.io/kubernetes/cmd/kubeadm
echo "$next" >"$bin/next.version"
echo "$coredns" >"$bin/coredns.version"
echo "$bin"

#!/bin/sh
# Makes the images that kubeadm asks for, of the programs that build.sh has built and the
# machine's nft, as archives for "subpod load": .cache/kubernetes/VERSION/images. What is
# there already is not made again.
#
#   tests/kubernetes/images.sh --node-e2e    those of the node e2e suite instead, of what
#                                            packages.sh has fetched: .cache/kubernetes/VERSION/registry
#   tests/kubernetes/images.sh --addons      those of kube-router and flannel instead, with what
#                                            packages.sh has fetched: .cache/kubernetes/VERSION/addons
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=$("$here/build.sh" --where)
if [ "${1-}" = --node-e2e ]; then
	agnhost=$(cd "$here/suite" && GOFLAGS= "$here/../go.sh" list -f '{{.Dir}}' k8s.io/kubernetes/test/images/agnhost)
	cd "$here/../.."
	CGO_ENABLED=0 GO=$(tests/go.sh --which) exec tests/go.sh run -buildvcs=false ./tests/images node-e2e -sysroot .cache/kubernetes/sysroot \
		-agnhost "$bin/agnhost" -source "$agnhost" -o "$(dirname "$bin")/registry"
fi
out=$(dirname "$bin")/images
[ "${1-}" != --addons ] || out=$(dirname "$bin")/addons
mkdir -p "$out"
rm -f "$out/pause.tar" # as it was made before
version=$(basename "$(dirname "$bin")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# copy FILE...: into the root of the image that is being made.
copy() {
	for file; do
		mkdir -p "$work/root$(dirname "$file")"
		cp -L "$file" "$work/root$file"
	done
}

# image NAME ENTRYPOINT: what is in the root, as a Docker archive. ENTRYPOINT is JSON.
image() {
	layer=$work/layer.tar
	tar -C "$work/root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$layer" .
	id=$(sha256sum "$layer" | cut -d' ' -f1)
	printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Entrypoint":%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
		"$("$here/../go.sh" env GOARCH)" "$2" "$id" >"$work/config.json"
	printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$1" >"$work/manifest.json"
	tar -C "$work" -cf "$out/$archive.new" manifest.json config.json layer.tar
	mv "$out/$archive.new" "$out/$archive"
	rm -rf "$work/root"
}

if [ "${1-}" = --addons ]; then
	for name in $("$here/build.sh" --addons); do
		program=$(basename "${name%:*}")
		archive=$program.tar
		[ ! -e "$out/$archive" ] || continue
		echo "making the image $name" >&2
		mkdir -p "$work/root/tmp" "$work/root/run" "$work/root/usr/local/bin" "$work/root/opt/bin"
		# iptables by nf_tables, with its extensions, ipset and their libraries.
		cp -a "$here"/../../.cache/kubernetes/sysroot-addons/* "$work/root/"
		rm -rf "$work/root/usr/share"
		for tool in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
			ln -s xtables-nft-multi "$work/root/usr/sbin/$tool"
		done
		case $program in
		kube-router)
			cp "$bin/kube-router" "$work/root/usr/local/bin/"
			image "$name" '["/usr/local/bin/kube-router"]'
			;;
		flannel)
			cp "$bin/flanneld" "$work/root/opt/bin/"
			image "$name" '["/opt/bin/flanneld"]'
			;;
		esac
	done
	echo "$out"
	exit
fi

for name in $("$bin/kubeadm" config images list --kubernetes-version "$version" 2>/dev/null) \
	registry.k8s.io/e2e-test-images/agnhost:2.66.1; do
	program=$(basename "${name%:*}") archive=$(basename "${name%:*}").tar
	[ "$program" != pause ] || archive=pause-true.tar
	[ ! -e "$out/$archive" ] || continue
	echo "making the image $name" >&2
	mkdir -p "$work/root/tmp" "$work/root/usr/local/bin"
	chmod 1777 "$work/root/tmp"
	case $program in
	coredns | agnhost)
		cp "$bin/$program" "$work/root/$program"
		image "$name" "[\"/$program\"]"
		continue
		;;
	pause)
		# Here no pod has one, but kubeadm upgrade looks whether it runs.
		cp "$here/../../.cache/images/busybox" "$work/root/busybox"
		image "$name" '["/busybox", "true"]'
		continue
		;;
	kube-proxy)
		# nftables by nft(8), with its libraries.
		nft=$(PATH=$PATH:/usr/sbin:/sbin command -v nft)
		copy "$nft" $(ldd "$nft" | grep -o '/[^ ]*')
		;;
	esac
	cp "$bin/$program" "$work/root/usr/local/bin/$program"
	image "$name" null
done
echo "$out"

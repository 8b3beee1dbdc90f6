#!/bin/sh
# Fetches what the test images are made of, from Debian's archive and without
# installing any of it, and builds busybox:
#
#   .cache/images/sysroot    nginx, apache, docker-registry and their libraries
#   .cache/images/busybox    the static busybox
#
# The archive is the machine's own (its apt sources). Needs no privileges.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cache=$root/.cache/images
mkdir -p "$cache"
cd "$cache"

if [ ! -e sysroot/.complete ]; then
	rm -rf sysroot debs
	mkdir -p debs/partial sysroot
	# The programs, and the libraries among what they depend on.
	libs=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts \
		--no-breaks --no-replaces --no-enhances nginx apache2-bin |
		grep -E '^(lib[a-z0-9.+-]+|zlib1g)$' | grep -vE -- '-perl|libperl|-dbd-|-ldap$|-modules' | sort -u)
	# shellcheck disable=SC2086
	(cd debs && apt-get -q -o APT::Sandbox::User="$(id -un)" download nginx apache2-bin docker-registry $libs)
	for deb in debs/*.deb; do
		dpkg-deb -x "$deb" sysroot
	done
	rm -rf debs
	touch sysroot/.complete
fi

# Built of this configuration? A checkout has new times, so the text is compared.
[ -x busybox ] && cmp -s busybox.config "$root/tests/images/busybox.config" && exit

# The machine's own sources, asked for source packages.
mkdir -p apt/lists/partial apt/cache/archives/partial src
. /etc/os-release
cat $(ls /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null) /dev/null |
	sed -n 's/^deb /deb-src /p' | grep "debian\|ubuntu" >apt/src.list || true
mkdir -p apt/parts
for f in /etc/apt/sources.list.d/*.sources; do
	[ -e "$f" ] || continue
	grep -q "^Suites:.*$VERSION_CODENAME" "$f" || continue
	sed 's/^Types:.*/Types: deb-src/' "$f" >"apt/parts/$(basename "$f")"
done
options="-q -o Dir::Etc::SourceList=$cache/apt/src.list -o Dir::Etc::SourceParts=$cache/apt/parts
	-o Dir::State::Lists=$cache/apt/lists -o Dir::Cache=$cache/apt/cache -o APT::Sandbox::User=$(id -un)"
# shellcheck disable=SC2086
(apt-get $options update && cd src && apt-get $options source --download-only busybox)
rm -rf build && mkdir build
tar -xf src/busybox_*.orig.tar.* -C build --strip-components=1
rm -rf src apt

cd build
make -s defconfig >/dev/null
while read -r line; do
	case $line in
	CONFIG_*=*) sed -i "s|^# ${line%%=*} is not set\$|$line|; s|^${line%%=*}=.*|$line|" .config ;;
	esac
done <"$root/tests/images/busybox.config"
# Questions that the changes open are answered by their defaults.
yes '' | make -s oldconfig >/dev/null
make -s -j"$(nproc)" busybox >make.log 2>&1 || { tail -n 30 make.log >&2; exit 1; }
cp busybox "$cache/busybox"
cp "$root/tests/images/busybox.config" "$cache/busybox.config"
cd .. && rm -rf build

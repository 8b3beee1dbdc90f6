#!/bin/sh
# Installs what "make build" has made, or takes it away again:
#
#   tests/pack/install.sh install   BINDIR
#   tests/pack/install.sh uninstall BINDIR
#
# BINDIR has the programs; TOOL (BINDIR/subpod) writes what comes beside them and must
# run on this machine. PREFIX (/usr/local) is where they are used, DESTDIR goes before it.
set -eu
action=$1 from=$2
prefix=${PREFIX:-/usr/local} root=${DESTDIR-}
tool=${TOOL:-$from/subpod}
case $prefix in /*) ;; *) echo "install: PREFIX=$prefix is not absolute" >&2; exit 1 ;; esac
source=$(cd "$(dirname "$0")/../.." && pwd)
umask 022

programs="subpod subpod-server subpod-node subpod-node-gvisor subpod-monitor"

# A program that runs is replaced, not written to; and all of them or none, where the disk
# is full.
work=$(mktemp -d)
clean() {
	rm -rf "$work"
	for name in $programs; do rm -f "$root$prefix/bin/$name.new"; done
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$tool" assets --prefix "$prefix" "$work"
for file in "$work"/share/man/*/*; do gzip -9n "$file"; done
if [ "$action" = install ]; then
	for name in $programs; do
		[ -x "$from/$name" ] || { echo "install: $from/$name is not built: make build" >&2; exit 1; }
	done
	mkdir -p "$root$prefix/bin"
	for name in $programs; do install -m 0755 "$from/$name" "$root$prefix/bin/$name.new"; done
fi
mkdir -p "$work/bin"
for name in $programs; do : >"$work/bin/$name"; done
for name in README.md SECURITY.md LICENSE; do cp "$source/$name" "$work/share/doc/subpod/"; done
gzip -9nc "$source/CHANGELOG.md" >"$work/share/doc/subpod/changelog.gz"

(cd "$work" && find . -type f | LC_ALL=C sort) | while read -r file; do
	to=$root$prefix/${file#./}
	case $action:$file in
	uninstall:*) rm -f "$to" ;;
	install:./bin/*) mv "$to.new" "$to" ;;
	install:*)
		mkdir -p "$(dirname "$to")"
		install -m 0644 "$work/$file" "$to" ;;
	esac
done
[ "$action" = install ] || rmdir -p --ignore-fail-on-non-empty \
	"$root$prefix/share/doc/subpod/examples" "$root$prefix/share/subpod" 2>/dev/null || true

#!/bin/sh
# Writes licenses.gz: the licences and notices of the modules that programs are linked
# with, which those want to come with them.
#
#   GO=tests/go.sh tests/pack/licenses.sh BINDIR DIRECTORY
set -eu
go=${GO:-go} from=$1 to=$2
cache=$("$go" env GOMODCACHE)
list=$(for program in "$from"/subpod*; do
	[ -d "$program" ] || "$go" version -m "$program"
done | awk '$1 == "dep" && $3 ~ /^v/ || $1 == "=>" && $3 ~ /^v/ {print $2 "@" $3}' | LC_ALL=C sort -u)
{
	echo "The programs of subpod are linked with these modules."
	for module in $list; do
		# Capital letters of module paths are written !x there.
		dir=$cache/$(echo "$module" | sed 's/[A-Z]/!\l&/g')
		[ -d "$dir" ] || continue # replaced by another one
		found=
		for file in "$dir"/LICENSE* "$dir"/LICENCE* "$dir"/COPYING* "$dir"/NOTICE*; do
			[ -f "$file" ] || continue
			found=yes
			printf '\n==== %s: %s\n\n' "$module" "${file##*/}"
			cat "$file"
		done
		[ -n "$found" ] || printf '\n==== %s: no licence file\n' "$module"
	done
	printf '\n==== The Go standard library: LICENSE\n\n'
	cat "$("$go" env GOROOT)/LICENSE"
} | gzip -9n >"$to/licenses.gz"

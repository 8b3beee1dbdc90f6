#!/bin/sh
# Assembles the fragments of docs/changelog/unreleased, sorted by kind.
#
#   tests/changelog.sh                    prints the section of the next release
#   tests/changelog.sh release VERSION    puts it into CHANGELOG.md and removes the fragments
set -eu
cd "$(dirname "$0")/.."
fragments=docs/changelog/unreleased

section() { # VERSION DATE
	printf '## %s (%s)\n' "$1" "$2"
	for kind in Security Added Changed Removed Fixed; do
		first=true
		for file in "$fragments"/*.md; do
			[ -e "$file" ] || continue
			head -n 1 "$file" | grep -q "^$kind: " || continue
			if $first; then printf '\n### %s\n\n' "$kind"; fi
			first=false
			sed -n "1s/^$kind: /- **/p" "$file" | sed 's/$/**/'
			sed '1,2d; s/^\(.\)/  \1/' "$file"
		done
	done
}

case ${1-} in
'') section "$(tests/version.sh)" unreleased ;;
release)
	version=${2:?usage: tests/changelog.sh release VERSION}
	new=$(mktemp)
	{
		sed '/^## /,$d' CHANGELOG.md
		section "$version" "$(date -u +%Y-%m-%d)"
		echo
		sed -n '/^## /,$p' CHANGELOG.md
	} >"$new"
	cat "$new" >CHANGELOG.md
	rm -f "$new" "$fragments"/*.md
	;;
*)
	echo "usage: tests/changelog.sh [release VERSION]" >&2
	exit 2
	;;
esac

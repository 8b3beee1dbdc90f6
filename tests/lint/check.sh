#!/bin/sh
# Runs an analyzer and compares what it finds with pending.txt, whose lines are findings
# without their position. A new finding fails, and so does a line that is no longer
# needed: the list only gets shorter.
#
#   tests/lint/check.sh NAME COMMAND [ARG...]     NAME begins the lines of pending.txt
set -eu
name=$1
shift
pending=$(dirname "$0")/pending.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

status=0
"$@" >"$work/out" 2>"$work/err" || status=$?
# staticcheck exits with 1 when it finds something; a tool that fails says nothing there.
if [ "$status" != 0 ] && { [ "$status" != 1 ] || [ ! -s "$work/out" ]; }; then
	cat "$work/out" "$work/err" >&2
	exit "$status"
fi
sed 's/:[0-9]*:[0-9]*:/:/' "$work/out" | sort -u >"$work/found"
sed -n "s/^$name //p" "$pending" | sort -u >"$work/known"

new=$(comm -23 "$work/found" "$work/known")
done=$(comm -13 "$work/found" "$work/known")
if [ -n "$new" ]; then
	echo "$new" | while read -r finding; do
		# With their positions, as editors like them.
		file=${finding%%:*} text=${finding#*: }
		grep -F "$file:" "$work/out" | grep -F "$text"
	done | sort -u >&2
fi
if [ -n "$done" ]; then
	echo "$done" | sed "s/^/$name: no longer found, delete from tests\/lint\/pending.txt: /" >&2
fi
[ -z "$new$done" ]

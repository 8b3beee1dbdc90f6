#!/bin/sh
# Runs every fuzz target of the module for an equal part of a time, and says how
# many inputs each was given. New inputs that matter are kept in Go's cache;
# committed ones are in testdata/fuzz of each package.
#
#   tests/fuzz.sh 10m
set -eu
cd "$(dirname "$0")/.."
go=${GO:-tests/go.sh}
case ${1:-10m} in
*m) total=$((${1%m} * 60)) ;;
*s) total=${1%s} ;;
*) echo "fuzz.sh: say a time like 10m or 90s" >&2; exit 2 ;;
esac
# Some packages test in namespaces of their own, where fuzzing has no business.
export SUBPOD_STORAGE_CHILD=fuzz SUBPOD_NSTEST=inside SUBPOD_OCI_TEST_STAGE=tests CGO_ENABLED=0

targets=$(grep -rn --include='*_test.go' '^func Fuzz' cmd pkg rootless storage netns configs |
	sed 's/^\([^:]*\)\/[^/:]*:[0-9]*:func \(Fuzz[A-Za-z0-9]*\).*/\1 \2/' | sort)
count=$(echo "$targets" | wc -l)
each=$((total / count))
[ "$each" -gt 0 ] || each=1
echo "fuzz: $count targets, $each s each"
status=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while read -r dir name; do
	# Before 1.27 Go may call the end of the time a failure:
	# https://github.com/golang/go/issues/75804
	# A minute to make each new input smaller, Go's default, is most of the time where
	# an input is an archive.
	if "$go" test -buildvcs=false -tags "${TAGS-}" -run '^$' -fuzz "^$name\$" -fuzztime "${each}s" \
		-fuzzminimizetime 20x "./$dir" >"$log" 2>&1 ||
		{ grep -q '^    context deadline exceeded$' "$log" && ! grep -q 'Failing input' "$log"; }; then
		printf '%-16s %-20s %s\n' "$dir" "$name" "$(sed -n 's/.*\(execs: [0-9]*\).*/\1/p' "$log" | tail -n 1)"
	else
		status=1
		printf '%-16s %-20s FAILED\n' "$dir" "$name"
		cat "$log"
	fi
done <<END
$targets
END
exit $status

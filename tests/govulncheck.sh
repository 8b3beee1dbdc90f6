#!/bin/sh
# Runs govulncheck on the programs, with the build tags $TAGS, where its database can
# be had: at $GOVULNDB (https://… or file:///…), by default https://vuln.go.dev.
# Without a database it says so and succeeds: what is not known offline is known to
# the project's public CI.
#
#   tests/govulncheck.sh .cache/bin/govulncheck
set -eu
cd "$(dirname "$0")/.."
db=${GOVULNDB:-https://vuln.go.dev}

case $db in
file://*) [ -e "${db#file://}/index/db.json" ] || missing="no index/db.json there" ;;
*) missing=$(curl -sS -f -o /dev/null --max-time 15 "$db/index/db.json" 2>&1) && missing= ;;
esac
if [ -n "${missing-}" ]; then
	echo "govulncheck: skipped: the database $db cannot be had: $missing"
	exit 0
fi
CGO_ENABLED=0 exec "$1" -db "$db" -tags "$TAGS" ./cmd/...

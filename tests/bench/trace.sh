#!/bin/sh
# Says where the time of CreateContainer goes: which of its steps is reached when, by the
# kernel's trace points, which cost microseconds. For root, with perf(1).
#
#   tests/bench/trace.sh [flags of TestBench, such as -driver native]
set -eu
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] && command -v perf >/dev/null || { echo "trace.sh: root and perf(1) are needed" >&2; exit 1; }
dir=$(mktemp -d /var/tmp/subpod-trace.XXXXXX)
recorder=
trap '[ -z "$recorder" ] || kill "$recorder" 2>/dev/null || :; rm -rf "$dir"' EXIT
chmod 0755 "$dir"
CGO_ENABLED=0 tests/go.sh test -buildvcs=false -tags "${TAGS-}" -c -o "$dir/bench.test" ./tests/bench
perf record -q -a -m 2048 -o "$dir/perf.data" \
	-e sched:sched_process_exec,sched:sched_process_fork,sched:sched_process_exit \
	-e syscalls:sys_enter_getpriority,syscalls:sys_enter_mount,syscalls:sys_enter_pivot_root -- sleep 3600 >/dev/null 2>&1 &
recorder=$!
(cd tests/bench && ../user.sh "$dir/bench.test" -test.run '^TestBench$' -pods 2 "$@")
kill -INT "$recorder"
wait "$recorder" || :
recorder=
perf script -i "$dir/perf.data" -F comm,tid,cpu,time,event,trace 2>/dev/null | "$dir/bench.test" -trace-table CreateContainer

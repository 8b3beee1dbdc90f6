#!/bin/sh
# In the node, in mount and cgroup namespaces of its own: ginkgo, in DIR, where the suite
# writes. It sees what the suite needs: cgroup v2 on a host that has v1 too, and no systemd,
# by which it would start its kubelet.
#
#   node_e2e.sh DIR [ARG...]    of ginkgo
set -eu
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
	mount --make-rprivate /sys
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
systemd_run=$(command -v systemd-run) && mount --bind /dev/null "$systemd_run"
cd "$1"
shift
exec ginkgo "$@"

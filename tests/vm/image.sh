#!/bin/sh
# Makes the disk of the test machine: a Debian 13 with systemd and what subpod
# needs, from the mirror that this machine's apt uses. Needs root, or sudo without
# a password: a root file system has files of many users.
#
#   tests/vm/image.sh              of amd64, in .cache/vm
#   tests/vm/image.sh arm64        of arm64, in .cache/vm/arm64
#
#   disk.raw             the file system, without a partition table
#   vmlinuz, initrd.img  what QEMU boots it with
#   key                  lets ssh in as root, and as the user "pod"
#
# Does nothing when all of this is there, made by the same script.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
script=$root/tests/vm/image.sh
arch=${1:-amd64}
cache=$root/.cache/vm
[ "$arch" = amd64 ] || cache=$cache/$arch
sum=$(cksum <"$script")
mkdir -p "$cache"
cd "$cache"
if [ -e disk.raw ] && [ "$(cat disk.sum 2>/dev/null)" = "$sum" ]; then exit; fi

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
PATH=$PATH:/usr/sbin:/sbin
suite=trixie
packages="systemd systemd-sysv udev dbus dbus-user-session libpam-systemd openssh-server
	linux-image-cloud-$arch initramfs-tools kmod procps iproute2 nftables mount
	crun runc conmon fuse-overlayfs slirp4netns uidmap catatonit util-linux-extra
	ca-certificates"
case $arch in
amd64) packages="$packages apparmor polkitd" ;;
*) packages="$packages busybox-static" ;; # for an image
esac

# The Debian mirror of this machine's sources.
mirror=$(apt-get indextargets --format '$(SITE) $(ORIGIN)' 2>/dev/null |
	sed -n '/security/d; s|/* Debian$||p' | head -n 1)
[ -n "$mirror" ] || { echo "vm: apt's sources name no Debian mirror" >&2; exit 1; }

# What runs in the tree: of another architecture, by qemu-user.
native=
in_tree=$root/tests/vm/foreign.sh
if [ "$arch" = "$(dpkg --print-architecture)" ]; then native=1 in_tree=chroot; fi

make_tree() {
	as_root debootstrap --arch="$arch" $([ "$native" ] || echo --foreign) --variant=minbase --include="$(echo $packages | tr ' ' ',')" \
		"$suite" tree "$mirror" || return
	[ "$native" ] && return
	# The second stage reads the list of all packages again and again, by an emulated perl.
	for list in tree/var/lib/apt/lists/*_Packages; do
		ls tree/var/cache/apt/archives | sed 's/_.*//' >names
		awk 'NR == FNR { wanted[$1]; next } $2 in wanted' names RS= ORS='\n\n' "$list" >list
		as_root cp list "$list"
	done
	rm -f names list
	as_root "$in_tree" "$cache/tree" /debootstrap/debootstrap --second-stage
}

# A tree is kept when only what follows has changed.
list=$(echo "$suite $mirror" $packages)
if [ "$(cat tree.list 2>/dev/null)" != "$list" ]; then
	echo "vm: Debian $suite from $mirror"
	as_root rm -rf tree
	rm -f tree.list
	make_tree >debootstrap.log 2>&1 || { tail -n 20 debootstrap.log >&2; exit 1; }
	echo "$list" >tree.list
fi

[ -e key ] || ssh-keygen -q -t ed25519 -N '' -C subpod-vm -f key
cat >setup.sh <<'SETUP'
set -eu
cd "$1"
# "chroot . COMMAND", also where the commands are of another architecture.
chroot=${3:-chroot}
put() { mkdir -p "$(dirname "$1")"; cat >"$1"; }
put etc/fstab </dev/null
put etc/hostname <<<vm
put etc/hosts <<<"127.0.0.1 localhost vm"
put etc/resolv.conf <<<"nameserver 10.0.2.3"
put etc/systemd/network/uplink.network <<END
[Match]
Name=en* eth*
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
END
# What docs/cgroups.md tells the administrator to write. Without it, systemd
# gives users memory and pids only.
put etc/systemd/system/user@.service.d/delegate.conf <<END
[Service]
Delegate=cpu cpuset io memory pids
END
put etc/ssh/sshd_config.d/tests.conf <<END
UseDNS no
MaxSessions 100
MaxStartups 100
END
# A session's end is waited for: ten seconds by default.
put etc/systemd/logind.conf.d/tests.conf <<END
[Login]
UserStopDelaySec=2
END
put etc/dpkg/dpkg.cfg.d/tests <<<force-unsafe-io
# Modules by name: a small initrd boots in half the time.
put etc/initramfs-tools/conf.d/small <<<MODULES=list
put etc/initramfs-tools/modules <<END
virtio_pci
virtio_blk
ext4
END
$chroot . systemctl -q enable systemd-networkd ssh
$chroot . systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	systemd-networkd-wait-online.service getty@tty1.service
# Profiles of a hundred programs that are not here take a third of the time to boot.
for profile in etc/apparmor.d/*; do
	name=${profile##*/}
	case $name in unprivileged_userns | unix-chkpwd | systemd-coredump) continue ;; esac
	[ ! -f "$profile" ] || [ -e usr/bin/"$name" ] || [ -e usr/sbin/"$name" ] || rm "$profile"
done
# apt would read the list of all packages for each that is installed.
rm -rf var/lib/apt/lists/*_* var/cache/apt/archives/*.deb
id=$($chroot . id -u pod 2>/dev/null) || $chroot . useradd --create-home --shell /bin/bash --uid 1000 pod
# Enough for pods with user namespaces of their own: the kubelet gives each 65536.
for kind in uid gid; do put etc/sub$kind <<<"pod:100000:262144"; done
mkdir -p var/lib/systemd/linger
touch var/lib/systemd/linger/pod
for home in root home/pod; do
	put "$home/.ssh/authorized_keys" <"$2"
	chmod 700 "$home/.ssh"
done
chown -R 1000:1000 home/pod
rm -f boot/initrd.img-*
$chroot . update-initramfs -c -k all >/dev/null
# Nothing is made anew at the first boot, the linker's cache for one.
touch -r usr etc/.updated var/.updated
SETUP
as_root bash setup.sh "$cache/tree" "$cache/key.pub" "$in_tree" >setup.log 2>&1 || { cat setup.log >&2; exit 1; }
rm -f setup.sh
for file in vmlinuz initrd.img; do
	# Links of the tree point from its own root.
	as_root cat tree/boot/"${file%.img}"*-*-"$arch" >"$file"
done
rm -f disk.raw disk.new
truncate -s 6G disk.new
as_root mke2fs -q -t ext4 -L root -d tree disk.new
as_root chown "$(id -u):$(id -g)" disk.new
mv disk.new disk.raw
echo "$sum" >disk.sum
echo "vm: disk made"

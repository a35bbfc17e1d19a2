#!/bin/sh
# The first process of a machine in namespaces of its own: a copy-on-write view of this one's files,
# its own /dev, /proc, /run and /tmp, and then systemd. $1: a directory for what it needs.
set -eu
place=$1
root=$place/root

mount --make-rprivate /
mount -t tmpfs tmpfs "$place/layer"
mkdir "$place/layer/upper" "$place/layer/work"
mount -t overlay -o "lowerdir=/,upperdir=$place/layer/upper,workdir=$place/layer/work" overlay "$root"

mount -t proc proc "$root/proc"
# Nothing here may turn a knob of the kernel that all machines share.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
  touch "$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mkdir "$root/run/host"
mount --bind "$place/host" "$root/run/host"

# A plain host: nothing that this one has enabled, no broker's data, a name that resolves.
rm -rf "$root"/etc/systemd/system/* "$root"/etc/rc*.d/* "$root/etc/rabbitmq" "$root/etc/rabbitflow"
ln -s /lib/systemd/system/basic.target "$root/etc/systemd/system/default.target"
for data in lib log; do
  mount -t tmpfs tmpfs "$root/var/$data/rabbitmq"
  chown rabbitmq:rabbitmq "$root/var/$data/rabbitmq"
done
mkdir "$root/etc/rabbitmq"
echo 'NODENAME=rabbit@localhost' > "$root/etc/rabbitmq/rabbitmq-env.conf"
echo '127.0.0.1 localhost machine' > "$root/etc/hosts"
echo machine > "$root/etc/hostname"
: > "$root/etc/machine-id"
ip link set lo up

mkdir "$root/run/before"
cd "$root"
pivot_root . run/before
umount -l /run/before
# As a manager of containers does: units get their credentials by a mount that has to spread.
mount --make-rshared /
exec setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio \
  env -i container=namespaces PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --log-target=journal --show-status=no

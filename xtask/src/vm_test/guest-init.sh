#!/bin/busybox sh
# The initramfs: the modules for the root disk, and over to it. Disks are told by their serials.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t sysfs sys /sys
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
tries=0
disk=
while [ -z "$disk" ] && [ $tries -lt 200 ]; do
    for block in /sys/block/vd*; do
        [ "$(/bin/busybox cat "$block/serial" 2>/dev/null)" = root ] && disk=/dev/${block##*/}
    done
    tries=$((tries + 1))
    [ -z "$disk" ] && /bin/busybox usleep 50000
done
/bin/busybox mount -t ext4 -o noatime "$disk" /root || {
    /bin/busybox echo "Kernel panic: no root disk"
    /bin/busybox reboot -f
}
/bin/busybox umount /sys
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init

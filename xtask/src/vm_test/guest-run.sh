#!/bin/sh
# The guest's side of the control line (ttyS1). Says that it is up; waits for "go EPOCH TIMEOUT"; mounts the disk of the
# job, runs its run.sh with the output on the line, packs /out onto the disk for it, and says how it ended. The host
# ends the machine then: it would lose the last words if the guest did.
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
disk() {
    tries=0
    while [ $tries -lt 100 ]; do
        for block in /sys/block/vd*; do
            [ "$(cat "$block/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${block##*/}" && return
        done
        tries=$((tries + 1))
        sleep 0.1
    done
    return 1
}
modprobe -q -a virtio_pci virtio_blk 2>/dev/null
mkdir -p /host /out
job=$(disk job)
out=$(disk out)
state=$(systemctl is-system-running --wait 2>/dev/null)
# So that the disk is whole without the frozen memory, too.
sync
read -r up _ </proc/uptime
echo "@@guest ready $state after $up s"
read -r _ now timeout
[ -n "$now" ] && date -u -s "@$now" >/dev/null
mount -o ro "$job" /host || { echo "@@guest ended 125"; sleep 60; }
cd /
timeout -k 5 "$timeout" /bin/bash /host/run.sh </dev/null
code=$?
tar -C /out -cf "$out" . 2>/dev/null
sync
echo "@@guest ended $code"
# Drains the line.
stty raw
sleep 60

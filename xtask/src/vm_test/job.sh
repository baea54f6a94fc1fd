# Runs in the guest, where the disk of the job is mounted on /host and what is in /out comes back.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive HOME=/root
export STANDIN_PAYLOAD=/host STANDIN_REPORT=/out RUST_BACKTRACE=0
dpkg --install /host/standin.deb || exit 1
# tests
/host/installed --ignored --test-threads=1 --skip removal --skip power_cut
first=$?
/host/installed --ignored --test-threads=1 removal
second=$?
[ $first -eq 0 ] && [ $second -eq 0 ] && exit 0
journalctl --no-pager -u standin.service -n 100 -o short-monotonic
exit 1

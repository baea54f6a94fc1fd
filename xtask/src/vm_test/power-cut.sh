# Runs in the guest at each boot, between the cuts.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive HOME=/root
export STANDIN_PAYLOAD=/host RUST_BACKTRACE=0
round=$(cat /host/round)
export STANDIN_ROUND="$round"
part() {
    /host/installed --ignored --nocapture --exact "power_cut::$1" || {
        journalctl --no-pager -u standin.service -n 100 -o short-monotonic
        exit 1
    }
}
if [ "$round" -eq 0 ]; then
    dpkg --install /host/standin.deb || exit 1
else
    part a_power_cut_takes_no_run_that_was_recorded_before_the_last_moments
fi
[ -e /host/last ] || part jobs_run_until_the_power_is_cut

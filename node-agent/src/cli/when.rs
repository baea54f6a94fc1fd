//! Times for people.

use crate::host;
use std::time::Duration;

/// Longest time that can be asked for, seconds: ten years.
const SPAN_S_MAX: u64 = 10 * 366 * 86_400;

/// How long ago, in one unit: `12 s ago`.
pub(super) fn ago(at_ms: i64) -> String {
    in_words((host::now_ms() - at_ms).max(0) / 1000)
}

fn in_words(seconds: i64) -> String {
    match seconds {
        0 => "just now".into(),
        1..=119 => format!("{seconds} s ago"),
        120..=7_199 => format!("{} min ago", seconds / 60),
        7_200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// The local date and time, to the millisecond: `2026-02-03 04:05:06.789`.
pub(super) fn clock(at_ms: i64) -> String {
    let (seconds, millis) = (at_ms.div_euclid(1000), at_ms.rem_euclid(1000));
    // SAFETY: all-zero is a valid tm, and both pointers are valid for the call.
    let local = unsafe {
        let mut local: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const seconds, &raw mut local);
        local
    };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{millis:03}",
        local.tm_year + 1900,
        local.tm_mon + 1,
        local.tm_mday,
        local.tm_hour,
        local.tm_min,
        local.tm_sec
    )
}

/// A length of time from people: `30s`, `15m`, `2h`, `7d`; a plain number counts seconds.
pub(super) fn parse_span(text: &str) -> Result<Duration, String> {
    let allowed = || "allowed is a time such as 30s, 15m, 2h or 7d".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(allowed()),
    };
    let number: u64 = number.parse().map_err(|_| allowed())?;
    number.checked_mul(seconds).filter(|&s| s <= SPAN_S_MAX).map(Duration::from_secs).ok_or_else(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_units() {
        assert_eq!(parse_span("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_span("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_span("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "s", "-1s", "1w", "1.5h", "99999999999999999999s", "9999999d"] {
            assert!(parse_span(bad).unwrap_err().contains("30s"), "{bad}");
        }
    }

    #[test]
    fn the_unit_grows_with_the_time() {
        let texts = [0, 1, 119, 120, 7199, 7200, 172_800].map(in_words);
        assert_eq!(
            texts,
            ["just now", "1 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "2 d ago"]
        );
    }
}

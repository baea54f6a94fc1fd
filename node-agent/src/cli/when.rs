//! Times for people.

use crate::host;
pub(super) use crate::units::format_clock as clock;

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

/// A moment of the past, milliseconds since 1970: how long ago (`10m`, `10 minutes ago`), or the local time
/// (`14:30`, which was today or yesterday; `2026-02-03 14:30:00`).
pub(super) fn parse_moment(text: &str) -> Result<i64, String> {
    let now_ms = host::now_ms();
    let trimmed = text.trim();
    let at_ms = if trimmed.contains(':') {
        local(trimmed, now_ms)
    } else {
        let span = trimmed.strip_suffix("ago").unwrap_or(trimmed).trim();
        let span = humantime::parse_duration(span).ok().and_then(|span| i64::try_from(span.as_millis()).ok());
        span.map(|span_ms| now_ms - span_ms)
    };
    let allowed =
        "write how long ago, such as 10m or '10 minutes ago', or when: 14:30, '2026-02-03 14:30:00'";
    match at_ms {
        Some(at_ms) if (0..=now_ms).contains(&at_ms) => Ok(at_ms),
        Some(_) => Err(format!("{text:?} is no time of the past: {allowed}")),
        None => Err(format!("{text:?} is no time: {allowed}")),
    }
}

/// A local time, with or without its day. Without, it is the last one that was.
fn local(text: &str, now_ms: i64) -> Option<i64> {
    let today = clock(now_ms);
    let (day, time) = text.split_once([' ', 'T']).unwrap_or((today.get(..10)?, text));
    let day: Vec<i32> = day.split('-').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let time: Vec<i32> = time.split(':').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let ([year, month, day], [hour, minute, more @ ..]) = (*day.as_array()?, time.as_slice()) else {
        return None;
    };
    let second = match more {
        [] => 0,
        [second] => *second,
        _ => return None,
    };
    let is_in = [
        (1970..=9999, year),
        (1..=12, month),
        (1..=31, day),
        (0..=23, *hour),
        (0..=59, *minute),
        (0..=60, second),
    ];
    if !is_in.iter().all(|(range, number)| range.contains(number)) {
        return None;
    }
    // SAFETY: all-zero is a valid tm, and the pointer is valid for the call.
    let seconds = unsafe {
        let mut local: libc::tm = std::mem::zeroed();
        (local.tm_year, local.tm_mon, local.tm_mday) = (year - 1900, month - 1, day);
        (local.tm_hour, local.tm_min, local.tm_sec, local.tm_isdst) = (*hour, *minute, second, -1);
        libc::mktime(&raw mut local)
    };
    let at_ms = seconds.checked_mul(1000)?;
    let has_day = text.contains('-');
    Some(if at_ms > now_ms && !has_day { at_ms - 86_400_000 } else { at_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_by_span_and_by_clock() {
        let now = host::now_ms();
        let about = |text: &str, at_ms: i64| (parse_moment(text).unwrap() - at_ms).abs() < 5_000;
        assert!(
            about("10m", now - 600_000)
                && about("10 minutes ago", now - 600_000)
                && about("1h 30m ago", now - 5_400_000)
        );
        let before = clock(now - 7_200_000);
        assert!(about(&before[..19], now - 7_200_000), "{before}");
        assert!(about(&before[11..19], now - 7_200_000), "{before}");
        for wrong in
            ["", "soon", "25:00", "2026-13-01 10:00", "10:00:00:00", "2999-01-01 10:00", "-5m", "1:2:x"]
        {
            assert!(parse_moment(wrong).is_err(), "{wrong}");
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

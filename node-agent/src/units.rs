//! Numbers for people, and sizes from people. Bytes are binary throughout: `512M`, `512MiB` and what is
//! printed as `512.0 MiB` are the same, as in the files of cgroup v2.

use std::time::Duration;
use thiserror::Error;

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Not a number with a known suffix.
    #[error(
        "{text:?} is no size: write a number with K, M, G or T (1024 each), KiB…TiB, or kB…TB (1000 each)"
    )]
    NotASize {
        /// What was given.
        text: String,
    },
    /// Zero, or more than 16 EiB.
    #[error("size {text:?} is out of range: it must be at least 1 byte and less than 16 EiB")]
    OutOfRange {
        /// What was given.
        text: String,
    },
}

/// A time: `50ms`, `2s`, `1m30s`, `1h`; a bare number is seconds.
///
/// # Errors
/// When it is none, or negative.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let allowed = || format!("{text:?} is no time: write a number with ms, s, m, h or d, such as 500ms");
    match text.trim().parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| allowed()),
        Err(_) => humantime::parse_duration(text).map_err(|_| allowed()),
    }
}

/// A size in bytes: `4096`, `512M`, `2G`, `1.5GiB`, `100MB`. Case does not matter.
///
/// # Errors
/// When it is no number, has an unknown suffix, is zero, or does not fit.
pub fn parse_bytes(text: &str) -> Result<u64, ParseError> {
    let not_a_size = || ParseError::NotASize { text: text.to_owned() };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(digits);
    let number: f64 = number.parse().map_err(|_| not_a_size())?;
    let bytes = number * multiplier(suffix.trim()).ok_or_else(not_a_size)?;
    if bytes < 1.0 || bytes >= u64::MAX as f64 {
        return Err(ParseError::OutOfRange { text: text.to_owned() });
    }
    Ok(bytes as u64)
}

fn multiplier(suffix: &str) -> Option<f64> {
    let suffix = suffix.to_ascii_lowercase();
    let (letter, rest) = match suffix.chars().next() {
        None => return Some(1.0),
        Some('b') if suffix.len() == 1 => return Some(1.0),
        Some(letter) if letter.is_ascii() => (letter, &suffix[1..]),
        Some(_) => return None,
    };
    let power = 1 + "kmgt".find(letter)?;
    let base: f64 = match rest {
        "" | "ib" => 1024.0,
        "b" => 1000.0,
        _ => return None,
    };
    Some(base.powi(power.try_into().ok()?))
}

/// `0 B`, `812 B`, `1.5 KiB`, `212.0 MiB`.
pub fn format_bytes(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let bytes = clean(bytes);
    if bytes < 1024.0 {
        return format!("{bytes:.0} B");
    }
    let mut value = bytes / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        // What would be printed as 1024.0 belongs to the next unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A count with its thousands apart: `1,234,567`.
pub fn format_count(count: u64) -> String {
    let digits = count.to_string();
    let places = digits.len();
    let apart = |(place, digit): (usize, char)| {
        let comma = place > 0 && (places - place).is_multiple_of(3);
        comma.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(apart).collect()
}

/// Bytes per second: `1.5 MiB/s`.
pub fn format_rate(bytes_per_s: f64) -> String {
    format!("{}/s", format_bytes(bytes_per_s))
}

/// GB·h, or a thousandth of that and so on: `1.16 GB·h`, `2.1 MB·h`.
pub fn format_gb_hours(value: f64) -> String {
    match value {
        value if value >= 0.1 => format!("{value:.2} GB·h"),
        value if value >= 1e-4 => format!("{:.1} MB·h", value * 1e3),
        value if value > 0.0 => format!("{:.1} kB·h", value * 1e6),
        _ => "0 GB·h".into(),
    }
}

/// Cores: `0.00`, `<0.01`, `1.50`. What is not nothing does not read as nothing.
pub fn format_cores(cores: f64) -> String {
    if cores > 0.0 && cores < 0.005 { "<0.01".into() } else { format!("{:.2}", clean(cores)) }
}

/// Seconds: `0 s`, `512 ns`, `250 µs`, `1.5 ms`, `12.3 s`, `4 min 10 s`, `3 h 05 min`, `2 d 4 h`.
pub fn format_duration(seconds: f64) -> String {
    let seconds = clean(seconds);
    if seconds == 0.0 {
        return "0 s".into();
    }
    if seconds < 0.000_000_999_5 {
        return format!("{:.0} ns", seconds * 1e9);
    }
    if seconds < 0.000_999_5 {
        return format!("{:.0} µs", seconds * 1e6);
    }
    if seconds < 0.999_95 {
        return format!("{:.1} ms", seconds * 1e3);
    }
    if seconds < 99.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min {:02} s", whole % 60),
        (0, _) => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// The local date and time, to the millisecond: `2026-02-03 04:05:06.789`.
pub fn format_clock(at_ms: i64) -> String {
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

/// Not a number and below zero print as zero: these are for people, and a profiler has no such amounts.
fn clean(number: f64) -> f64 {
    if number.is_nan() { 0.0 } else { number.clamp(0.0, 1e30) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    #[test]
    fn few_cores_are_not_none() {
        let cores = [0.0, 0.0049, 0.005, 1.5, f64::NAN].map(format_cores);
        assert_eq!(cores, ["0.00", "<0.01", "0.01", "1.50", "0.00"]);
    }

    #[test]
    fn times_are_parsed() {
        assert_eq!(parse_duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2.5"), Ok(Duration::from_millis(2500)));
        for wrong in ["", "-1", "1 fortnight", "NaN", "1e300"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_parsed() {
        for (text, bytes) in [
            ("4096", 4096),
            ("512M", 512 << 20),
            ("512MiB", 512 << 20),
            ("2g", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("100MB", 100_000_000),
            (" 7 kB ", 7000),
            ("1b", 1),
            ("3T", 3 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "12X", "1.2.3M", "-5", "5 µ", "0x10", "1e3", "5MMB", "inf", "NaN", "."] {
            assert!(matches!(parse_bytes(text), Err(ParseError::NotASize { .. })), "{text}");
        }
        for text in ["0", "0.1", "99999999999T"] {
            assert!(matches!(parse_bytes(text), Err(ParseError::OutOfRange { .. })), "{text}");
        }
        let message = parse_bytes("12X").unwrap_err().to_string();
        assert!(message.contains("12X") && message.contains("1024"), "{message}");
    }

    #[test]
    fn amounts_are_printed() {
        for (bytes, text) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1536.0, "1.5 KiB"),
            (1_048_575.0, "1.0 MiB"),
            (222_298_112.0, "212.0 MiB"),
            (f64::NAN, "0 B"),
            (-1.0, "0 B"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.000_000_512, "512 ns"),
            (0.00025, "250 µs"),
            (0.0015, "1.5 ms"),
            (0.9999, "999.9 ms"),
            (12.34, "12.3 s"),
            (250.0, "4 min 10 s"),
            (11_100.0, "3 h 05 min"),
            (187_200.0, "2 d 4 h"),
        ] {
            assert_eq!(format_duration(seconds), text);
        }
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(format_count(count), text);
        }
        assert!(!format_duration(f64::INFINITY).is_empty());
        assert_eq!(format_rate(2048.0), "2.0 KiB/s");
    }

    proptest! {
        #[test]
        fn hostile_amounts(text in prop_oneof![hostile::number(), any::<String>()], amount in any::<f64>()) {
            if let Ok(bytes) = parse_bytes(&text) {
                prop_assert!(bytes > 0);
            }
            _ = parse_duration(&text);
            prop_assert!(!format_bytes(amount).contains("NaN") && !format_duration(amount).contains("NaN"));
        }
    }
}

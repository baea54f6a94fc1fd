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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_grows_with_the_time() {
        let texts = [0, 1, 119, 120, 7199, 7200, 172_800].map(in_words);
        assert_eq!(
            texts,
            ["just now", "1 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "2 d ago"]
        );
    }
}

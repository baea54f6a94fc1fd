//! Times for people.

use crate::host;
use crate::units::format_duration;

/// How long ago, coarsely: `12 s ago`.
pub(super) fn ago(at_ms: i64) -> String {
    let seconds = (host::now_ms() - at_ms).max(0) / 1000;
    if seconds == 0 { "just now".into() } else { format!("{} ago", format_duration(seconds as f64)) }
}

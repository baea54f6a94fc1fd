//! Texts of users on one line of ours.

/// A text of one line that can do nothing to what shows it: control characters, and those that turn the direction
/// of writing, become `?`.
pub fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '?' } else { c }).collect()
}

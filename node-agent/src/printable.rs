//! Texts of users on one line of ours.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A text of one line that can do nothing to what shows it: control characters, and those that turn the direction
/// of writing, become `?`.
pub fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '?' } else { c }).collect()
}

/// A command as it can be typed in bash: what a shell would take apart is quoted.
pub fn command_line(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    if printable(word) == word {
        return format!("'{}'", word.replace('\'', r"'\''"));
    }
    let escaped = |c: char| match c {
        '\n' => r"\n".to_owned(),
        '\t' => r"\t".to_owned(),
        '\\' | '\'' => format!("\\{c}"),
        c if c.is_ascii_control() => format!(r"\x{:02x}", u32::from(c)),
        c => c.to_string(),
    };
    format!("$'{}'", word.chars().map(escaped).collect::<String>())
}

/// Columns that a text takes in a terminal: a Chinese character takes two, a combining accent none.
pub fn columns(text: &str) -> usize {
    text.width()
}

/// As much of a text as fits into so many columns.
pub fn within(text: &str, room: usize) -> &str {
    let mut taken = 0;
    let end = text.char_indices().find(|(_, c)| {
        taken += c.width().unwrap_or(0);
        taken > room
    });
    end.map_or(text, |(at, _)| &text[..at])
}

/// A text of no more than so many columns; what does not fit is left out, and a sign stands for it.
pub fn cut(text: &str, room: usize) -> String {
    if columns(text) <= room { text.to_owned() } else { format!("{}…", within(text, room - 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_typed_again() {
        let line = |words: &[&str]| command_line(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(line(&["xz", "-T2", "--", "a.tar"]), "xz -T2 -- a.tar");
        assert_eq!(line(&["redis", "--save", "", "größe=1"]), "redis --save '' größe=1");
        assert_eq!(line(&["sh", "-c", "echo $1; it's"]), r"sh -c 'echo $1; it'\''s'");
        assert_eq!(line(&["a\nb\t'\\\x1b"]), r"$'a\nb\t\'\\\x1b'");
    }

    #[test]
    fn nothing_is_cut_within_a_character() {
        assert_eq!((columns("xz"), columns("日本"), columns("e\u{301}")), (2, 4, 1));
        assert_eq!(
            (within("日本", 3), within("日本", 4), within("e\u{301}x", 1)),
            ("日", "日本", "e\u{301}")
        );
    }
}

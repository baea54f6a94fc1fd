//! Pieces of HTML in which no text can be anything but text.

use crate::printable::printable;

/// A text for HTML and SVG, as content or between quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// A table; columns of numbers keep to the right. Cells are texts, not HTML.
pub(super) struct Table {
    caption: String,
    columns: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

/// A column of words.
pub(super) const fn words(name: &'static str) -> (&'static str, bool) {
    (name, false)
}

/// A column of numbers.
pub(super) const fn numbers(name: &'static str) -> (&'static str, bool) {
    (name, true)
}

impl Table {
    pub(super) fn new(caption: impl Into<String>, columns: &[(&'static str, bool)]) -> Self {
        Self { caption: caption.into(), columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; the first cell is its heading.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table in a region of its own, which scrolls by keyboard where it is too wide.
    pub(super) fn html(&self) -> String {
        let class = |number: bool| if number { " class=\"n\"" } else { "" };
        let head: String = self
            .columns
            .iter()
            .map(|(name, number)| format!("<th scope=\"col\"{}>{}</th>", class(*number), escape(name)))
            .collect();
        let cell = |(place, text): (usize, &String)| {
            let number = self.columns.get(place).is_some_and(|column| column.1);
            match place {
                0 => format!("<th scope=\"row\"{}>{}</th>", class(number), escape(text)),
                _ => format!("<td{}>{}</td>", class(number), escape(text)),
            }
        };
        let rows: String = self
            .rows
            .iter()
            .map(|row| format!("<tr>{}</tr>\n", row.iter().enumerate().map(cell).collect::<String>()))
            .collect();
        let caption = escape(&self.caption);
        format!(
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\"><table>\
             <caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
        )
    }

    /// The table behind a plot: closed until somebody wants it.
    pub(super) fn folded(&self) -> String {
        format!("<details><summary>Table: {}</summary>\n{}</details>\n", escape(&self.caption), self.html())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stay_texts() {
        assert_eq!(escape("<b a=\"1\">'&"), "&lt;b a=&quot;1&quot;&gt;&#39;&amp;");
        assert_eq!(escape("a\u{202e}b\0c\nd"), "a?b?c?d");
        let mut table = Table::new("</caption><script>", &[words("A"), numbers("B")]);
        table.row(["<img src=x>".into(), "\"".into()]);
        let html = table.html();
        assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
        assert!(
            html.contains("<th scope=\"row\">&lt;img src=x&gt;</th><td class=\"n\">&quot;</td>"),
            "{html}"
        );
    }
}

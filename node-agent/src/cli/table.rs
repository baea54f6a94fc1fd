//! Tables for people: columns as wide as they need to be, numbers to the right, nothing but text.

use crate::printable::columns;
pub(super) use crate::printable::printable;
use std::fmt::{self, Display};

/// Which side a column's texts keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A table: a head and rows of as many cells.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. Control characters in it are shown as `?`: names come from users.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let headed = head.iter().any(|name| !name.is_empty());
        let lines = || headed.then_some(&head).into_iter().chain(&self.rows);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                lines().filter_map(|line| line.get(column)).map(|cell| columns(cell)).max().unwrap_or(0)
            })
            .collect();
        for line in lines() {
            let mut text = String::new();
            for ((cell, width), (_, align)) in line.iter().zip(&widths).zip(&self.columns) {
                text += &aligned(cell, *width, *align);
                text += "  ";
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// A text with so many blanks beside it that it takes `width` columns.
pub(super) fn aligned(text: &str, width: usize, align: Align) -> String {
    let blanks = " ".repeat(width.saturating_sub(columns(text)));
    match align {
        Align::Left => format!("{text}{blanks}"),
        Align::Right => format!("{blanks}{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("TASK", Align::Left), ("RUNS", Align::Right)]);
        table.row(["xz".into(), "12".into()]);
        table.row(["cargo build".into(), "3".into()]);
        assert_eq!(table.to_string(), "TASK         RUNS\nxz             12\ncargo build     3\n");
    }

    #[test]
    fn columns_line_up_beside_names_in_any_script() {
        let mut table = Table::new(&[("TASK", Align::Left), ("RUNS", Align::Right)]);
        table.row(["日本語".into(), "1".into()]);
        table.row(["cafe\u{301}".into(), "2".into()]);
        assert_eq!(table.to_string(), "TASK    RUNS\n日本語     1\ncafe\u{301}       2\n");
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        let mut table = Table::new(&[("TASK", Align::Left)]);
        table.row(["a\u{1b}[2J\nb".into()]);
        assert_eq!(table.to_string(), "TASK\na?[2J?b\n");
    }
}

//! Tables for people: columns as wide as they need to be, numbers to the right, nothing but text.

pub(super) use crate::printable::printable;
use std::fmt::{self, Display};

/// Widest column that texts are aligned to: `format!` knows no wider one.
const WIDTH_MAX: usize = u16::MAX as usize;

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
                lines()
                    .filter_map(|line| line.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
                    .min(WIDTH_MAX)
            })
            .collect();
        for line in lines() {
            let mut text = String::new();
            for ((cell, width), (_, align)) in line.iter().zip(&widths).zip(&self.columns) {
                match align {
                    Align::Left => text += &format!("{cell:<width$}  "),
                    Align::Right => text += &format!("{cell:>width$}  "),
                }
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
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
    fn names_cannot_move_the_cursor() {
        let mut table = Table::new(&[("TASK", Align::Left)]);
        table.row(["a\u{1b}[2J\nb".into()]);
        assert_eq!(table.to_string(), "TASK\na?[2J?b\n");
    }
}

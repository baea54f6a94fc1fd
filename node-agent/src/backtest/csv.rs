//! Delimited text to rows of fields: commas, tabs or bars, quotes as in RFC 4180, and the number of the line
//! that each row began on, so that every complaint can name its place.

use std::fmt;

/// What is wrong with an input, and where. Prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadInput {
    /// Line, counted from 1; 0 where the input as a whole is meant.
    pub line: usize,
    /// Name of the column, or empty where the row as a whole is meant.
    pub column: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}", self.line)?;
            if !self.column.is_empty() {
                write!(f, ", column {:?}", self.column)?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for BadInput {}

/// A row and where it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) line: usize,
    pub(super) fields: Vec<String>,
}

/// The delimiter of a header: the one of tab, bar and comma that it has most of.
pub(super) fn delimiter(header: &str) -> char {
    let count = |delimiter: char| header.matches(delimiter).count();
    ['\t', '|', ','].into_iter().rev().max_by_key(|delimiter| count(*delimiter)).unwrap_or(',')
}

/// All rows of a text, empty lines left out.
pub(super) fn rows(text: &str) -> Result<Vec<Row>, BadInput> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let delimiter = delimiter(text.lines().next().unwrap_or(""));
    let mut parser =
        Parser { delimiter, line: 1, begun: 1, row: Vec::new(), field: String::new(), rows: vec![] };
    parser.run(text)?;
    Ok(parser.rows)
}

struct Parser {
    delimiter: char,
    line: usize,
    begun: usize,
    row: Vec<String>,
    field: String,
    rows: Vec<Row>,
}

impl Parser {
    fn run(&mut self, text: &str) -> Result<(), BadInput> {
        let mut characters = text.chars().peekable();
        let mut quoted = false;
        while let Some(c) = characters.next() {
            match c {
                '"' if quoted && characters.peek() == Some(&'"') => {
                    characters.next();
                    self.field.push('"');
                }
                '"' if quoted => quoted = false,
                '"' if self.field.is_empty() => quoted = true,
                '\n' => {
                    self.line += 1;
                    if quoted {
                        self.field.push('\n');
                    } else {
                        self.end_row();
                    }
                }
                c if c == self.delimiter && !quoted => self.row.push(std::mem::take(&mut self.field)),
                c => self.field.push(c),
            }
        }
        if quoted {
            return Err(BadInput {
                line: self.begun,
                column: String::new(),
                problem: "a quote that is never closed".into(),
            });
        }
        self.end_row();
        Ok(())
    }

    fn end_row(&mut self) {
        if self.field.ends_with('\r') {
            self.field.pop();
        }
        let empty = self.row.is_empty() && self.field.trim().is_empty();
        self.row.push(std::mem::take(&mut self.field));
        let fields = std::mem::take(&mut self.row);
        if !empty {
            self.rows.push(Row { line: self.begun, fields });
        }
        self.begun = self.line;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<Vec<String>> {
        rows(text).unwrap().into_iter().map(|row| row.fields).collect()
    }

    #[test]
    fn quotes_delimiters_and_line_ends() {
        assert_eq!(fields("a,b\r\n\"x,\"\"y\"\"\",2\n\n"), [vec!["a", "b"], vec!["x,\"y\"", "2"]]);
        assert_eq!(fields("a|b|c\n1,0||3"), [vec!["a", "b", "c"], vec!["1,0", "", "3"]]);
        assert_eq!(fields("a\tb\n1\t2\n")[1], ["1", "2"]);
    }

    #[test]
    fn rows_know_their_line() {
        let rows = rows("a,b\n\n\"x\ny\",1\nz,2\n").unwrap();
        assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 3, 5]);
    }

    #[test]
    fn an_open_quote_is_told_with_its_line() {
        assert_eq!(rows("a\n\"x\ny").unwrap_err().line, 2);
    }
}

//! Owns tables: columns by their widest cell, two spaces between, numbers to the right, readable without colour.
//!
//! On a terminal a table fits its width: the widest columns are cut, with an ellipsis, but never the first, which names
//! the row, nor a number. Where even that does not fit, each row becomes a block of lines. In a pipe or
//! a file nothing is cut, and a cell that is much longer than others does not widen its column.

use crate::terminal::{cut, safe, width};

/// The narrowest that a column is cut to.
const NARROWEST: usize = 12;
/// The widest column where nothing is cut; longer cells reach beyond it.
const WIDEST: usize = 60;
/// Between columns.
const GAP: &str = "  ";

/// Lays rows out for a terminal of `columns`, or for a pipe.
pub(super) fn table(header: &[&str], rows: &[Vec<String>], columns: Option<usize>) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| safe(cell).into_owned()).collect()).collect();
    let all = measure(header, &rows);
    match columns {
        None => grid(header, &rows, &all.iter().map(Column::unbounded).collect::<Vec<_>>(), false),
        Some(columns) => match fit(&all, columns) {
            Some(fitting) => grid(header, &rows, &fitting, true),
            None => blocks(header, &rows),
        },
    }
}

#[derive(Clone, Copy)]
struct Column {
    width: usize,
    title: usize,
    is_number: bool,
}

impl Column {
    fn unbounded(&self) -> Self {
        Self { width: self.width.min(self.title.max(WIDEST)), ..*self }
    }
}

fn measure(header: &[&str], rows: &[Vec<String>]) -> Vec<Column> {
    let is_number = |cell: &String| {
        cell.starts_with(|c: char| c.is_ascii_digit())
            && cell.chars().all(|c| c.is_ascii_digit() || ".,".contains(c))
    };
    let of = |(index, title): (usize, &&str)| {
        let cells = || rows.iter().filter_map(move |row| row.get(index));
        let title = width(title);
        let widest = cells().map(|cell| width(cell)).max().unwrap_or(0);
        Column { width: widest.max(title), title, is_number: cells().all(is_number) }
    };
    header.iter().enumerate().map(of).collect()
}

/// The columns, the widest of them narrowed until all fit; `None` where they cannot.
fn fit(all: &[Column], columns: usize) -> Option<Vec<Column>> {
    let room = columns.checked_sub(GAP.len() * all.len().saturating_sub(1))?;
    let narrowed = |most: usize| -> Vec<Column> {
        let narrow = |(index, column): (usize, &Column)| match index == 0 || column.is_number {
            true => *column,
            false => Column { width: column.width.min(most), ..*column },
        };
        all.iter().enumerate().map(narrow).collect()
    };
    let widest = all.iter().map(|column| column.width).max().unwrap_or(0).max(NARROWEST);
    let fits = |columns: &Vec<Column>| columns.iter().map(|column| column.width).sum::<usize>() <= room;
    (NARROWEST..=widest).rev().map(narrowed).find(fits)
}

fn grid(header: &[&str], rows: &[Vec<String>], columns: &[Column], cuts: bool) -> String {
    let mut out = String::new();
    let mut push = |row: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, column) in row.zip(columns) {
            let cell = if cuts { cut(cell, column.width) } else { cell.into() };
            let pad = " ".repeat(column.width.saturating_sub(width(&cell)));
            let (before, after) = if column.is_number { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line.push_str(&format!("{before}{cell}{after}{GAP}"));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    };
    push(&mut header.iter().copied());
    for row in rows {
        push(&mut row.iter().map(String::as_str));
    }
    out
}

/// Each row as lines of title and value, whole.
fn blocks(header: &[&str], rows: &[Vec<String>]) -> String {
    let titles = header.iter().map(|title| width(title)).max().unwrap_or(0);
    let block = |row: &Vec<String>| -> String {
        header.iter().zip(row).map(|(title, cell)| format!("{title:<titles$}{GAP}{cell}\n")).collect()
    };
    rows.iter().map(block).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: [&str; 3] = ["ID", "CREDITS", "NAME"];

    fn rows(names: &[&str]) -> Vec<Vec<String>> {
        names.iter().map(|name| vec!["user_1".into(), "1,200".into(), (*name).into()]).collect()
    }

    #[test]
    fn a_table_reads_without_colour() {
        let rows = vec![
            vec!["user_1".into(), "9".into(), "Zoë".into()],
            vec!["user_22".into(), "1,200".into(), String::new()],
        ];
        assert_eq!(
            table(&HEADER, &rows, None),
            "ID       CREDITS  NAME\nuser_1         9  Zoë\nuser_22    1,200\n"
        );
    }

    #[test]
    fn a_cell_never_steers_the_terminal() {
        let text = table(&["NAME"], &[vec!["\u{1b}[2Jx\ny".into()]], None);
        assert_eq!(text, "NAME\n\\u{1b}[2Jx\\u{a}y\n");
    }

    #[test]
    fn wide_characters_keep_the_columns() {
        let rows = [["王芳", "x"], ["🦀", "y"], ["abcde", "z"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["name", "n"], &rows, None), "name   n\n王芳   x\n🦀     y\nabcde  z\n");
    }

    #[test]
    fn one_long_cell_widens_no_column_and_is_whole_in_a_pipe() {
        let long = "x".repeat(400);
        let rows = [[long.as_str(), "1"], ["short", "2"]].map(|row| row.map(str::to_owned).to_vec());
        let text = table(&["name", "n"], &rows, None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], format!("{long}  1"));
        assert_eq!(lines[2], format!("{:<60}  2", "short"));
    }

    #[test]
    fn on_a_terminal_a_table_fits_and_says_where_it_was_cut() {
        let text = table(&HEADER, &rows(&[&"n".repeat(400), "王芳王芳王芳王芳王芳"]), Some(30));
        assert_eq!(
            text,
            "ID      CREDITS  NAME\nuser_1    1,200  nnnnnnnnnnnn…\nuser_1    1,200  王芳王芳王芳…\n"
        );
        assert!(text.lines().all(|line| width(line) <= 30));
        assert_eq!(table(&HEADER, &rows(&["Ada"]), Some(30)), table(&HEADER, &rows(&["Ada"]), None));
    }

    #[test]
    fn what_cannot_fit_becomes_blocks() {
        let text = table(&HEADER, &rows(&["Ada Lovelace", "Zoë"]), Some(20));
        let block = |name: &str| format!("ID       user_1\nCREDITS  1,200\nNAME     {name}\n");
        assert_eq!(text, format!("{}\n{}", block("Ada Lovelace"), block("Zoë")));
    }
}

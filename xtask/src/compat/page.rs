//! `docs/compatibility.md`: read back, so that a run of some cases leaves the rows of the others.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use llamaprobe_tests::compatibility::Case;

const HEAD: &str = "# What it was tried with

Written by `cargo xtask compat`, which runs every row again: a real llama.cpp, the agent beside it, requests, and the figures
of both. A pair is the agent's figure and the server's own, by its `/metrics` or, where that does not say, by its answers. A
row is `ok` when every pair is equal, every figure that a server of this build says was there to compare, and no event was lost.
";

/// What stands above each table.
const TABLES: [(&str, &str); 3] = [
    ("builds", "## Builds\n\nFrom the packages of their registries, as they are: servers and bindings."),
    ("modes", "## Modes of a server"),
    ("places", "## Places\n\nWhere a server runs, and what becomes of its files."),
];

/// A row of the page.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    table: String,
    name: String,
    word: String,
    day: String,
    figures: String,
}

impl Row {
    /// What came out of a case.
    pub(super) fn of(case: &Case, word: &str, day: &str, figures: &str) -> Self {
        let figures = figures.replace('|', "/");
        Self {
            table: case.table.to_owned(),
            name: case.name.clone(),
            word: word.to_owned(),
            day: day.to_owned(),
            figures,
        }
    }

    /// Whether it is of this case.
    pub(super) fn is_of(&self, case: &Case) -> bool {
        (self.table.as_str(), self.name.as_str()) == (case.table, case.name.as_str())
    }
}

/// The rows of a page; none where there is no page.
pub(super) fn read(page: &Path) -> Vec<Row> {
    parse(&fs::read_to_string(page).unwrap_or_default())
}

fn parse(text: &str) -> Vec<Row> {
    let (mut table, mut rows) = (None, Vec::new());
    for line in text.lines() {
        if line.starts_with("## ") {
            table = TABLES.iter().find(|(_, head)| head.starts_with(line)).map(|(name, _)| *name);
        }
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if let (Some(table), [name, word, day, figures]) = (table, cells.as_slice())
            && !word.starts_with("--")
            && *name != "What"
        {
            let cell = |text: &&str| (*text).to_owned();
            rows.push(Row {
                table: table.to_owned(),
                name: cell(name),
                word: cell(word),
                day: cell(day),
                figures: cell(figures),
            });
        }
    }
    rows
}

/// Puts a row in the place of the one that was of the same case.
pub(super) fn put(rows: &mut Vec<Row>, row: Row) {
    match rows.iter_mut().find(|old| (&old.table, &old.name) == (&row.table, &row.name)) {
        Some(old) => *old = row,
        None => rows.push(row),
    }
}

/// Writes the page, the rows in the order of the cases.
pub(super) fn write(page: &Path, rows: &[Row], cases: &[Case]) -> Result<()> {
    let sorted: Vec<_> =
        cases.iter().filter_map(|case| rows.iter().find(|row| row.is_of(case))).cloned().collect();
    fs::write(page, text(&sorted)).with_context(|| format!("cannot write {}", page.display()))
}

fn text(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for (table, head) in TABLES {
        let _ = write!(text, "\n{head}\n\n| What | | Seen | Agent = server |\n| --- | --- | --- | --- |\n");
        for row in rows.iter().filter(|row| row.table == table) {
            let _ = writeln!(text, "| {} | {} | {} | {} |", row.name, row.word, row.day, row.figures);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(table: &str, name: &str, figures: &str) -> Row {
        let [table, name, figures] = [table, name, figures].map(str::to_owned);
        Row { table, name, word: "ok".to_owned(), day: "2026-11-26".to_owned(), figures }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut rows = vec![
            row("builds", "a-1 (b1)", "generated tokens 3 = 3"),
            row("modes", "1 slot, a", "lost 0 = 0"),
        ];
        assert_eq!(parse(&text(&rows)), rows);
        put(&mut rows, row("modes", "1 slot, a", "lost 1 ≠ 0"));
        put(&mut rows, row("places", "1 slot, a", ""));
        assert_eq!((rows.len(), rows[1].figures.as_str()), (3, "lost 1 ≠ 0"));
        assert!(parse("").is_empty());
    }
}

//! Tables of figures: as JSON, as markdown, and between marks of docs/performance.md.

use std::fs;

use anyhow::{Context as _, Result};
use llamaprobe_tests::assets::workspace_root;
use serde_json::{Map, Value, json};

const PAGE: &str = "docs/performance.md";

/// A table of one measurement.
pub struct Table {
    /// Its name between the marks of the page, and in the JSON document.
    pub name: &'static str,
    /// What stands above the columns; the first is of the rows' names.
    pub head: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows yet.
    pub fn new(name: &'static str, head: &[&str]) -> Self {
        Self { name, head: head.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// One more row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule: Vec<_> =
            (0..self.head.len()).map(|at| if at == 0 { "---" } else { "---:" }.into()).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        [line(&self.head), line(&rule), rows].concat()
    }

    fn json(&self) -> Value {
        let row = |cells: &Vec<String>| -> Value {
            let cells = self.head.iter().zip(cells).map(|(head, cell)| (head.clone(), json!(cell)));
            Value::Object(cells.collect())
        };
        self.rows.iter().map(row).collect()
    }
}

/// Prints tables: markdown, or one JSON document.
pub fn print(tables: &[Table], as_json: bool) -> Result<()> {
    if as_json {
        let all: Map<_, _> = tables.iter().map(|table| (table.name.to_owned(), table.json())).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        tables.iter().for_each(|table| println!("{}:\n\n{}", table.name, table.markdown()));
    }
    Ok(())
}

/// Writes tables between their marks of the page.
pub fn write(tables: &[Table]) -> Result<()> {
    let path = workspace_root().join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let page = tables.iter().try_fold(page, |page, table| insert(&page, table))?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

fn insert(page: &str, table: &Table) -> Result<String> {
    let mark = |word: &str| format!("<!-- {} {word} -->\n", table.name);
    let missing = |mark: &str| format!("{PAGE} has no line {:?}: put it where the table goes", mark.trim());
    let (begin, end) = (mark("begins"), mark("ends"));
    let (before, rest) = page.split_once(&begin).with_context(|| missing(&begin))?;
    let (_, after) = rest.split_once(&end).with_context(|| missing(&end))?;
    Ok(format!("{before}{begin}{}{end}{after}", table.markdown()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_goes_between_its_marks() {
        let mut table = Table::new("price", &["what", "ns"]);
        table.row(vec!["a hit".into(), "700".into()]);
        let page = "a\n<!-- price begins -->\nold\n<!-- price ends -->\nb\n";
        let new = "a\n<!-- price begins -->\n| what | ns |\n| --- | ---: |\n| a hit | 700 |\n<!-- price ends -->\nb\n";
        assert_eq!(insert(page, &table).unwrap(), new);
        let error = insert("a", &table).unwrap_err().to_string();
        assert!(error.contains("<!-- price begins -->"), "{error}");
    }

    #[test]
    fn the_page_has_a_place_for_every_table() {
        let page = fs::read_to_string(workspace_root().join(PAGE)).unwrap();
        for name in super::super::TABLES {
            insert(&page, &Table::new(name, &["x"])).unwrap();
        }
    }
}

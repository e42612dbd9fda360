//! Plain tables with the padding of Ceph's text tables: every column is as wide as its widest cell or heading,
//! columns are two spaces apart, and the last column is padded too (scripts that cut by column rely on it).
//! Headings are always left-aligned; cells follow their column.

use std::fmt;

/// How the cells of a column are aligned. Headings stay on the left either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Names, states, times.
    Left,
    /// Numbers and sizes.
    Right,
}

/// A table that is printed whole once all rows are known. Bounded by what the caller puts in; it copies nothing else.
#[derive(Debug, Clone)]
pub struct TextTable {
    columns: Vec<(String, Align, usize)>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// A table with these headings and alignments.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let columns = columns
            .iter()
            .map(|(name, align)| (name.to_string(), *align, width(name)))
            .collect();
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a column behind the last one; call it before the first row (e.g. NAMESPACE of `snap ls --all`).
    pub fn add_column(&mut self, heading: &str, align: Align) {
        debug_assert!(self.rows.is_empty(), "columns come before rows");
        self.columns.push((heading.to_owned(), align, width(heading)));
    }

    /// Adds a row. Missing cells are empty, cells beyond the last column are dropped.
    pub fn row<I, S>(&mut self, cells: I)
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let mut row: Vec<String> = cells
            .into_iter()
            .map(Into::into)
            .take(self.columns.len())
            .collect();
        row.resize(self.columns.len(), String::new());
        for (column, cell) in self.columns.iter_mut().zip(&row) {
            column.2 = column.2.max(width(cell));
        }
        self.rows.push(row);
    }

    /// Number of rows so far; Ceph prints several lists only when there is at least one.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// No rows yet.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (heading, _, width)) in self.columns.iter().enumerate() {
            let gap = if index == 0 { "" } else { "  " };
            write!(f, "{gap}{heading:<width$}")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            for (index, (cell, (_, align, width))) in row.iter().zip(&self.columns).enumerate() {
                let gap = if index == 0 { "" } else { "  " };
                match align {
                    Align::Left => write!(f, "{gap}{cell:<width$}")?,
                    Align::Right => write!(f, "{gap}{cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

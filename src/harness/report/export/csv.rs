//! Tables as CSV (RFC 4180): a null is an empty cell, times have as many digits as tell them apart.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context;

use super::{Batch, Column, Folder, Sink};

/// A text file per table.
pub type Files = Folder<BufWriter<File>>;

impl Files {
    fn path(&self, table: &str) -> PathBuf {
        self.dir.join(format!("{table}.csv"))
    }
}

impl Sink for Files {
    fn write(&mut self, batch: &Batch) -> anyhow::Result<()> {
        let path = self.path(batch.table);
        let failed = || format!("cannot write {}", path.display());
        if !self.open.contains_key(batch.table) {
            let mut file = BufWriter::new(File::create(&path).with_context(failed)?);
            let names = batch.columns.iter().map(|(name, _)| (*name).to_owned());
            line(&mut file, names).with_context(failed)?;
            self.open.insert(batch.table, file);
        }
        let Some(file) = self.open.get_mut(batch.table) else {
            return Ok(());
        };
        let rows = batch.columns.first().map_or(0, |(_, column)| column.len());
        for row in 0..rows {
            let cells = batch.columns.iter().map(|(_, column)| cell(column, row));
            line(file, cells).with_context(failed)?;
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        let dir = self.dir;
        for (table, mut file) in self.open {
            file.flush()
                .with_context(|| format!("cannot write {table}.csv in {}", dir.display()))?;
        }
        Ok(())
    }
}

fn line(out: &mut impl Write, cells: impl Iterator<Item = String>) -> std::io::Result<()> {
    for (index, cell) in cells.enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        out.write_all(quoted(cell).as_bytes())?;
    }
    out.write_all(b"\n")
}

fn quoted(cell: String) -> String {
    if cell.contains(['"', ',', '\n', '\r']) {
        return format!("\"{}\"", cell.replace('"', "\"\""));
    }
    cell
}

fn cell(column: &Column, row: usize) -> String {
    let value = match column {
        Column::Text(values) => values.get(row).cloned().flatten(),
        Column::F64(values) => shown(values, row),
        Column::I64(values) => shown(values, row),
        Column::Bool(values) => shown(values, row),
    };
    value.unwrap_or_default()
}

fn shown<T: ToString>(values: &[Option<T>], row: usize) -> Option<String> {
    values.get(row)?.as_ref().map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be_and_nulls_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        let batch = Batch {
            table: "t",
            columns: vec![
                ("a", Column::Text(vec![Some("x,\"y\"".to_owned()), None])),
                ("b", Column::F64(vec![Some(1.5), Some(f64::NAN)])),
            ],
        };
        let mut files = Files::create(dir.path()).unwrap();
        files.write(&batch).unwrap();
        files.write(&batch).unwrap();
        files.finish().unwrap();
        let text = std::fs::read_to_string(dir.path().join("t.csv")).unwrap();
        assert_eq!(
            text,
            "a,b\n\"x,\"\"y\"\"\",1.5\n,NaN\n\"x,\"\"y\"\"\",1.5\n,NaN\n"
        );
    }
}

//! Tables as Parquet: pandas, polars, `DuckDB` and Arrow read them with their types and nulls.
//!
//! Plain and dictionary encodings without compression, which every reader knows; one row group per batch.

use std::fs::File;
use std::sync::Arc;

use anyhow::Context;
use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{Type, TypePtr};

use super::{Batch, Column, Folder, Sink};

/// A Parquet file per table.
pub type Files = Folder<SerializedFileWriter<File>>;

impl Sink for Files {
    fn write(&mut self, batch: &Batch) -> anyhow::Result<()> {
        let path = self.dir.join(format!("{}.parquet", batch.table));
        let failed = || format!("cannot write {}", path.display());
        if !self.open.contains_key(batch.table) {
            let file = File::create(&path).with_context(failed)?;
            let properties = Arc::new(WriterProperties::builder().build());
            let schema = schema(batch).with_context(failed)?;
            let writer =
                SerializedFileWriter::new(file, schema, properties).with_context(failed)?;
            self.open.insert(batch.table, writer);
        }
        match self.open.get_mut(batch.table) {
            Some(writer) => row_group(writer, batch).with_context(failed),
            None => Ok(()),
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        for (table, writer) in self.open {
            writer.close().with_context(|| {
                format!("cannot write {table}.parquet in {}", self.dir.display())
            })?;
        }
        Ok(())
    }
}

fn schema(batch: &Batch) -> Result<TypePtr> {
    let field = |(name, column): &(&str, Column)| {
        let (physical, logical) = match column {
            Column::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Column::F64(_) => (Physical::DOUBLE, None),
            Column::I64(_) => (Physical::INT64, None),
            Column::Bool(_) => (Physical::BOOLEAN, None),
        };
        Type::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical)
            .build()
            .map(Arc::new)
    };
    let fields = batch.columns.iter().map(field).collect::<Result<_>>()?;
    let schema = Type::group_type_builder(batch.table).with_fields(fields);
    Ok(Arc::new(schema.build()?))
}

fn row_group(writer: &mut SerializedFileWriter<File>, batch: &Batch) -> Result<()> {
    let mut group = writer.next_row_group()?;
    for (_, column) in &batch.columns {
        let Some(mut open) = group.next_column()? else {
            return Err(ParquetError::General(
                "fewer columns than values".to_owned(),
            ));
        };
        values(open.untyped(), column)?;
        open.close()?;
    }
    group.close()?;
    Ok(())
}

/// Writes a column: its values, and for each row whether there is one.
fn values(writer: &mut ColumnWriter<'_>, column: &Column) -> Result<()> {
    match (writer, column) {
        (ColumnWriter::ByteArrayColumnWriter(writer), Column::Text(rows)) => {
            let present: Vec<ByteArray> =
                rows.iter().flatten().map(|t| t.as_str().into()).collect();
            writer.write_batch(&present, Some(&levels(rows)), None)?;
        }
        (ColumnWriter::DoubleColumnWriter(writer), Column::F64(rows)) => {
            writer.write_batch(&present(rows), Some(&levels(rows)), None)?;
        }
        (ColumnWriter::Int64ColumnWriter(writer), Column::I64(rows)) => {
            writer.write_batch(&present(rows), Some(&levels(rows)), None)?;
        }
        (ColumnWriter::BoolColumnWriter(writer), Column::Bool(rows)) => {
            writer.write_batch(&present(rows), Some(&levels(rows)), None)?;
        }
        _ => {
            return Err(ParquetError::General(
                "a column changed its type".to_owned(),
            ));
        }
    }
    Ok(())
}

fn present<T: Copy>(rows: &[Option<T>]) -> Vec<T> {
    rows.iter().flatten().copied().collect()
}

/// Parquet's definition levels: 1 for a value, 0 for a null.
fn levels<T>(rows: &[Option<T>]) -> Vec<i16> {
    rows.iter()
        .map(|value| i16::from(value.is_some()))
        .collect()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    use super::*;

    fn batch(first: i64) -> Batch {
        Batch {
            table: "t",
            columns: vec![
                ("name", Column::Text(vec![Some("ä".to_owned()), None])),
                ("seconds", Column::F64(vec![None, Some(0.25)])),
                ("count", Column::I64(vec![Some(first), Some(-1)])),
                ("good", Column::Bool(vec![Some(true), None])),
            ],
        }
    }

    #[test]
    fn what_was_written_reads_back_with_types_and_nulls() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::create(dir.path()).unwrap();
        files.write(&batch(7)).unwrap();
        files.write(&batch(8)).unwrap();
        files.finish().unwrap();
        let file = File::open(dir.path().join("t.parquet")).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        let rows: Vec<Vec<Field>> = reader
            .get_row_iter(None)
            .unwrap()
            .map(|row| {
                row.unwrap()
                    .into_columns()
                    .into_iter()
                    .map(|(_, field)| field)
                    .collect()
            })
            .collect();
        let text = Field::Str("ä".to_owned());
        assert_eq!(
            rows[0],
            [text, Field::Null, Field::Long(7), Field::Bool(true)]
        );
        assert_eq!(
            rows[1],
            [
                Field::Null,
                Field::Double(0.25),
                Field::Long(-1),
                Field::Null
            ]
        );
        assert_eq!((rows.len(), &rows[2][2]), (4, &Field::Long(8)));
    }

    #[test]
    fn a_column_that_changes_its_type_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::create(dir.path()).unwrap();
        files.write(&batch(7)).unwrap();
        let mut other = batch(7);
        other.columns[0].1 = Column::I64(vec![None, None]);
        assert!(files.write(&other).is_err());
    }
}

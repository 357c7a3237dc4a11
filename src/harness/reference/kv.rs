//! `kv_cache_timeseries.csv` as Python's `csv.reader`, `int` and `float` read it. Pure: bytes in, samples out.
//!
//! The first row is the header, whatever it says; a first row that is empty ends the file, as it did there. Rows of
//! fewer than five cells, of other metrics, and with a time or value that is no number are skipped. NaN is kept.
//! Bytes that are not UTF-8, at which Python stopped with an error, are replaced.

use std::borrow::Cow;

use super::python;
use crate::harness::window::KvSample;

/// What the name of a KV usage series holds.
const METRIC: &str = "kv_cache_usage_perc";

/// Cells of a row that are kept: `ts_iso,ts_unix,port,metric,value`.
const CELLS: usize = 5;

/// The longest cell, in characters: Python's `csv.field_size_limit()`.
const MAX_CELL: usize = 131_072;

/// A row with a sample of KV usage.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<'a> {
    /// When, as written: with the offset of the zone in which the run was made.
    pub ts_iso: Cow<'a, str>,
    /// The vLLM server, as written.
    pub port: Cow<'a, str>,
    /// The series: name and labels.
    pub metric: Cow<'a, str>,
    /// When and how much.
    pub sample: KvSample,
}

impl Row<'_> {
    /// Seconds east of UTC at the run, from `ts_iso`: `2026-01-05T08:00:00+01:00` gives 3600.
    pub fn offset_s(&self) -> Option<i32> {
        let zone = self.ts_iso.get(19..)?;
        if zone == "Z" {
            return Some(0);
        }
        let (hours, minutes) = zone.get(1..)?.split_once(':')?;
        let seconds = hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60;
        match zone.as_bytes().first()? {
            b'+' => Some(seconds),
            b'-' => Some(-seconds),
            _ => None,
        }
    }
}

/// A cell is longer than Python's `csv` allows, which ends the reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field larger than field limit ({MAX_CELL})")]
pub struct CellTooLong;

/// Rows read, for a word on completeness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Samples of KV usage, NaN among them.
    pub samples: u64,
    /// Rows of a KV usage series that were skipped, or too short to tell.
    pub skipped: u64,
    /// The first of those, its cells joined by commas.
    pub example: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    RowStart,
    CellStart,
    Plain,
    Quoted,
    QuoteInQuoted,
    AfterReturn,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Header,
    Rows,
    /// Behind an empty header.
    Ended,
}

/// Reads a file piece by piece: [`Reader::feed`] each, then [`Reader::finish`].
#[derive(Debug, Default)]
pub struct Reader {
    state: State,
    place: Place,
    /// The kept cells of the row, one behind the other, and where each ends.
    text: Vec<u8>,
    ends: Vec<usize>,
    /// Cells of the row, and characters of its last.
    cells: usize,
    cell_chars: usize,
    tally: Tally,
}

impl Reader {
    /// Reads the next piece of the file and calls `each` with every sample that ends in it.
    ///
    /// # Errors
    /// [`CellTooLong`], behind which Python does not read either.
    pub fn feed(
        &mut self,
        piece: &[u8],
        each: &mut impl FnMut(&Row<'_>),
    ) -> Result<(), CellTooLong> {
        piece.iter().try_for_each(|byte| self.step(*byte, each))
    }

    /// Reads a last row without a line end, and says how many there were.
    pub fn finish(mut self, each: &mut impl FnMut(&Row<'_>)) -> Tally {
        if !matches!(self.state, State::RowStart | State::AfterReturn) {
            self.end_cell();
            self.end_row(each);
        }
        self.tally
    }

    fn step(&mut self, byte: u8, each: &mut impl FnMut(&Row<'_>)) -> Result<(), CellTooLong> {
        if self.state == State::AfterReturn {
            self.state = State::RowStart;
            if byte == b'\n' {
                return Ok(());
            }
        }
        self.state = match (self.state, byte) {
            (State::Quoted, b'"') => State::QuoteInQuoted,
            (State::Quoted, _) | (State::QuoteInQuoted, b'"') => self.add(byte, State::Quoted)?,
            (State::RowStart | State::CellStart, b'"') => State::Quoted,
            (_, b',') => {
                self.end_cell();
                State::CellStart
            }
            (state, b'\n' | b'\r') => {
                if state != State::RowStart {
                    self.end_cell();
                }
                self.end_row(each);
                if byte == b'\r' {
                    State::AfterReturn
                } else {
                    State::RowStart
                }
            }
            _ => self.add(byte, State::Plain)?,
        };
        Ok(())
    }

    fn add(&mut self, byte: u8, next: State) -> Result<State, CellTooLong> {
        // A byte that goes on with a character counts with it.
        if byte & 0xC0 != 0x80 {
            self.cell_chars += 1;
        }
        if self.cell_chars > MAX_CELL {
            return Err(CellTooLong);
        }
        if self.cells < CELLS {
            self.text.push(byte);
        }
        Ok(next)
    }

    fn end_cell(&mut self) {
        if self.cells < CELLS {
            self.ends.push(self.text.len());
        }
        self.cells += 1;
        self.cell_chars = 0;
    }

    fn end_row(&mut self, each: &mut impl FnMut(&Row<'_>)) {
        match self.place {
            Place::Header if self.cells == 0 => self.place = Place::Ended,
            Place::Header => self.place = Place::Rows,
            Place::Rows => self.read_row(each),
            Place::Ended => {}
        }
        self.text.clear();
        self.ends.clear();
        self.cells = 0;
    }

    fn read_row(&mut self, each: &mut impl FnMut(&Row<'_>)) {
        let cell = |index: usize| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            String::from_utf8_lossy(&self.text[start..self.ends[index]])
        };
        let whole = self.ends.len() == CELLS;
        if self.cells == 0 || (whole && !cell(3).contains(METRIC)) {
            return;
        }
        let numbers = whole
            .then(|| python::int(&cell(1)).zip(python::float(&cell(4))))
            .flatten();
        if let Some((ts_s, value)) = numbers {
            self.tally.samples += 1;
            each(&Row {
                ts_iso: cell(0),
                port: cell(2),
                metric: cell(3),
                sample: KvSample {
                    ts_s,
                    usage_percent: value * 100.0,
                },
            });
        } else {
            let cells: Vec<_> = (0..self.ends.len()).map(cell).collect();
            let example = cells.join(",");
            self.tally.skipped += 1;
            self.tally.example.get_or_insert(example);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> (Vec<(i64, f64)>, Tally) {
        let mut samples = Vec::new();
        let mut each = |row: &Row<'_>| samples.push((row.sample.ts_s, row.sample.usage_percent));
        let mut reader = Reader::default();
        for piece in text.chunks(3) {
            reader.feed(piece, &mut each).unwrap();
        }
        let tally = reader.finish(&mut each);
        (samples, tally)
    }

    fn times(text: &str) -> Vec<i64> {
        read(text.as_bytes())
            .0
            .into_iter()
            .map(|(ts_s, _)| ts_s)
            .collect()
    }

    const K: &str = "vllm:kv_cache_usage_perc";

    #[test]
    fn the_samplers_rows_are_read_and_other_metrics_passed_over() {
        let text = format!(
            "ts_iso,ts_unix,port,metric,value\n\
             t,10,1,vllm:gpu_cache_usage_perc,0.9\n\
             t,11,1,{K}{{engine=\"0\";m=\"a\"}},0.5\n\
             t,12,1,{K},NaN\n\
             t,late,1,{K},0.5\n\
             t,13,1\n\
             t,14,1,{K},0.25,more"
        );
        let (samples, tally) = read(text.as_bytes());
        assert_eq!(
            samples.iter().map(|s| s.0).collect::<Vec<_>>(),
            [11, 12, 14]
        );
        assert!((samples[0].1 - 50.0).abs() < 1e-9 && samples[1].1.is_nan());
        let example = Some(format!("t,late,1,{K},0.5"));
        assert_eq!(
            tally,
            Tally {
                samples: 3,
                skipped: 2,
                example
            }
        );
    }

    // Each case was put to CPython 3.11's csv.reader, int and float.
    #[test]
    fn quotes_line_ends_and_numbers_are_pythons() {
        let cases = [
            (format!("h\nt,1,1,\"a,\n{K}\",.5\n"), vec![1]),
            (format!("h\nt,\"2\",1,\"{K}\"x,.5\n"), vec![2]),
            (format!("h\nt,\"\"\"2\",1,{K},.5\n"), vec![]),
            (format!("h\nt,3,1,a\"{K}\",.5\n"), vec![3]),
            (
                format!("h\r\nt,4,1,{K},.5\r\nt,5,1,{K},.5\rt,6,1,{K},.5"),
                vec![4, 5, 6],
            ),
            (format!("h\n\n\nt, 1_0 ,1,{K},\t1_0.5\n"), vec![10]),
            (
                format!("h\nt,1.0,1,{K},.5\nt,2,1,{K},1__0\nt,3,1,{K},0x1\n"),
                vec![],
            ),
            (format!("h\nt,7,1,{K},\"0.5"), vec![7]),
            (format!("t,1,1,{K},.5\nt,2,1,{K},.5\n"), vec![2]),
            (format!("\nh\nt,2,1,{K},.5\n"), vec![]),
            (String::new(), vec![]),
            (format!("h\nt,8,1,{K},"), vec![]),
        ];
        for (text, expected) in cases {
            assert_eq!(times(&text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_cell_beyond_pythons_limit_ends_the_reading() {
        let mut reader = Reader::default();
        let row = format!("h\nt,1,1,{},1\n", "é".repeat(MAX_CELL));
        assert_eq!(reader.feed(row.as_bytes(), &mut |_| {}), Ok(()));
        let row = "x".repeat(MAX_CELL + 1);
        assert_eq!(reader.feed(row.as_bytes(), &mut |_| {}), Err(CellTooLong));
        assert_eq!(
            CellTooLong.to_string(),
            "field larger than field limit (131072)"
        );
    }

    #[test]
    fn the_zone_of_the_run_stands_in_its_times() {
        let offset = |ts_iso: &'static str| {
            let sample = KvSample {
                ts_s: 0,
                usage_percent: 0.0,
            };
            Row {
                ts_iso: ts_iso.into(),
                port: "1".into(),
                metric: K.into(),
                sample,
            }
            .offset_s()
        };
        assert_eq!(offset("2026-01-05T08:00:00+00:00"), Some(0));
        assert_eq!(offset("2026-01-05T08:00:00-07:30"), Some(-27_000));
        assert_eq!(offset("2026-01-05T08:00:00Z"), Some(0));
        assert_eq!(offset("2026-01-05 08:00"), None);
    }
}

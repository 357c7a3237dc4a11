//! KV cache usage over time, in the reference experiment's layout: the one place that writes it.
//!
//! `ts_iso,ts_unix,port,metric,value`, one row per usage series and sample: the series' name with its labels,
//! commas turned to semicolons, and its value as the backend printed it. A failed scrape is one row with `NaN`.
//! Source: `collect_kv_cache_timeseries.sh` of the reference experiment.

use std::io::{self, Write};

use jiff::Timestamp;

use super::recorder::KvRow;
use super::scrape::KV_USAGE_METRIC;

/// The file's name in a run directory.
pub const FILE: &str = "kv_cache_timeseries.csv";

/// Its first line.
pub const HEADER: &str = "ts_iso,ts_unix,port,metric,value";

/// Writes the rows of one sample.
pub(super) fn write(out: &mut impl Write, row: &KvRow) -> io::Result<()> {
    let seconds = whole_seconds(row.at_s);
    let iso = Timestamp::from_second(seconds)
        .unwrap_or_default()
        .strftime("%Y-%m-%dT%H:%M:%S+00:00");
    let port = row.port;
    let Some(scrape) = &row.scrape else {
        return writeln!(out, "{iso},{seconds},{port},{KV_USAGE_METRIC},NaN");
    };
    for usage in &scrape.usage_lines {
        let metric = usage.metric.replace(',', ";");
        writeln!(out, "{iso},{seconds},{port},{metric},{}", usage.value)?;
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
const fn whole_seconds(at_s: f64) -> i64 {
    at_s.floor() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::scrape::{Scrape, UsageLine};

    fn written(scrape: Option<Scrape>) -> String {
        let row = KvRow {
            at_s: 1_795_489_069.75,
            backend: "http://127.0.0.1:29100".to_owned(),
            port: 29100,
            scrape,
            held: 0,
            policy: "baseline",
            values: Vec::new(),
            records_dropped: 0,
        };
        let mut out = Vec::new();
        write(&mut out, &row).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_row_is_laid_out_as_the_reference_sampler_does() {
        let line = UsageLine {
            metric: "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"/m\"}".to_owned(),
            value: "1e-05".to_owned(),
        };
        let text = written(Some(Scrape {
            usage_lines: vec![line],
            ..Scrape::default()
        }));
        let expected = "2026-11-24T02:57:49+00:00,1795489069,29100,vllm:kv_cache_usage_perc{engine=\"0\";model_name=\"/m\"},1e-05\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_failed_scrape_is_a_row_that_is_no_number() {
        let text = written(None);
        assert_eq!(
            text,
            "2026-11-24T02:57:49+00:00,1795489069,29100,vllm:kv_cache_usage_perc,NaN\n"
        );
    }
}

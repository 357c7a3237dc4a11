//! A matrix that is killed goes on, and has every task once.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    Playing, ended, experiment, json, lines, listens, logged, place, replay, said, until_gone,
};

const CELLS: [&str; 4] = [
    "baseline-c2",
    "thunderagent-c2",
    "thunderagent-c4",
    "baseline-c4",
];
const TASKS: usize = 12;

/// How often each program stands in a cell's records.
fn in_records(cell: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for record in lines(&cell.join("programs.jsonl")) {
        assert_eq!(record["ending"], "done", "{record}");
        let program = record["program"].as_str().expect("a name");
        *counts.entry(program.to_owned()).or_default() += 1;
    }
    counts
}

/// How often each program stands in a cell's table.
fn in_table(cell: &Path) -> BTreeMap<String, usize> {
    let file = File::open(cell.join("results.parquet")).expect("a table");
    let reader = SerializedFileReader::new(file).expect("parquet");
    let mut counts = BTreeMap::new();
    for row in reader.get_row_iter(None).expect("rows") {
        let columns = row.expect("a row").into_columns();
        let program = columns.into_iter().find(|(name, _)| name == "program");
        if let Some((_, Field::Str(program))) = program {
            *counts.entry(program).or_default() += 1;
        }
    }
    counts
}

/// The cell's manifest has the command that began the matrix, and `resume` so often; the cell itself never went on.
fn assert_made_by(cell: &Path, resumed: usize) {
    let manifest = json(&cell.join("manifest.json")).expect("a manifest");
    let has = |line: &Value, word: &str| line.to_string().contains(word);
    assert!(has(&manifest["command"], "\"matrix\""), "{manifest}");
    let by = manifest["resumed_by"].as_array().expect("a list");
    assert_eq!(by.len(), resumed, "{}: {by:?}", cell.display());
    assert!(by.iter().all(|line| has(line, "\"resume\"")), "{by:?}");
    assert_eq!(
        manifest["resumed"],
        Value::Array(Vec::new()),
        "it began anew"
    );
}

#[test]
fn a_matrix_killed_in_the_middle_and_resumed_has_every_task_of_every_cell_once() {
    let (_temp, dir) = place();
    let mut line = replay("matrix", TASKS, 150, &dir);
    line += " --policy baseline,thunderagent --concurrency 2,4";
    let mut playing = Playing::start(&line, &dir);
    playing.until_ended(CELLS[1], 3);
    let children = playing.children();
    let cut = dir.join("cells").join(CELLS[1]);
    let gate = json(&cut.join("manifest.json")).expect("a manifest")["url"].clone();
    let gate = gate.as_str().expect("the gate's address").to_owned();
    assert!(listens(&gate));

    playing.signal(Signal::KILL);
    assert_eq!(playing.end(), None, "killed");

    assert_eq!(
        children.keys().collect::<Vec<_>>(),
        ["engine", "serve"],
        "both were running"
    );
    until_gone(children.into_values());
    assert!(!listens(&gate), "{gate} is free again");
    let status = experiment(&format!("status {}", dir.display()));
    assert_eq!(status.status.code(), Some(3), "{}", said(&status));
    assert!(said(&status).contains("cut off"), "{}", said(&status));

    let resumed = experiment(&format!("resume {} --quiet", dir.display()));

    assert!(resumed.status.success(), "{}", said(&resumed));
    assert_eq!(logged(&dir, "baseline-c2: done before"), 1);
    let mut sets = Vec::new();
    for name in CELLS {
        let cell = dir.join("cells").join(name);
        let records = in_records(&cell);
        assert_eq!(records.len(), TASKS, "{name}");
        assert!(records.values().all(|&count| count == 1), "{records:?}");
        assert_eq!(in_table(&cell), records, "{name}");
        assert_eq!(ended(&cell)["outcome"], "done");
        sets.push(records);
    }
    assert!(sets.iter().all(|set| *set == sets[0]), "one set for all");
    for (name, resumed) in [(CELLS[0], 0), (CELLS[1], 1), (CELLS[3], 1)] {
        assert_made_by(&dir.join("cells").join(name), resumed);
    }
    let aside = dir.join("interrupted/thunderagent-c2-1/steps.jsonl");
    assert!(!lines(&aside).is_empty(), "the first attempt is kept");
    let report = std::fs::read_to_string(dir.join("report/report.md")).expect("a report");
    assert!(!report.contains("incomplete"), "{report}");

    let again = experiment(&format!("resume {} --quiet", dir.display()));
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(
        logged(&dir, "done before"),
        1 + CELLS.len(),
        "nothing is played"
    );
}

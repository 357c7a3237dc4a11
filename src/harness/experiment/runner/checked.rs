//! Everything that was asked for, checked; every problem at once.

use crate::harness::experiment::engine::{self, Plan};
use crate::harness::experiment::spec::Options;
use crate::harness::experiment::watchdog::Rules;
use crate::harness::experiment::workload::Workload;

/// Everything that was asked for, checked.
pub(super) struct Checked {
    pub(super) workload: Workload,
    pub(super) engine: Plan,
    pub(super) rules: Rules,
}

impl Checked {
    /// Checks it all; every problem at once.
    pub(super) fn of(options: &Options) -> Result<Self, Vec<String>> {
        let mut problems = options.problems();
        let workload = options
            .workload
            .check()
            .map_err(|more| problems.extend(more));
        let mut engine = options.engine.clone();
        if let (Ok(workload), engine::Kind::Embedded) = (&workload, engine.kind()) {
            fit(&mut engine, workload);
        }
        let engine = engine.check().map_err(|more| problems.extend(more));
        let rules = options
            .watchdog
            .rules()
            .map_err(|problem| problems.push(problem));
        if options.matrix != Some(true) && options.places().len() > 1 {
            problems.push(
                "`run` plays one cell: name one --policy and one --concurrency, or use `matrix`"
                    .to_owned(),
            );
        }
        if let (Ok(workload), Ok(engine)) = (&workload, &engine)
            && engine.speedup() > 1.0
            && !matches!(workload, Workload::Recorded(_))
        {
            problems.push(
                "--speedup is for --workload replay: tau2's own Python runs at its own pace"
                    .to_owned(),
            );
        }
        match (workload, engine, rules) {
            (Ok(workload), Ok(engine), Ok(rules)) if problems.is_empty() => Ok(Self {
                workload,
                engine,
                rules,
            }),
            _ => Err(problems),
        }
    }
}

/// Lets the embedded engine hold the longest context of recorded programs, unless it was told its size.
fn fit(engine: &mut engine::EngineOptions, workload: &Workload) {
    if let Some(longest) = workload.longest_context() {
        // A template and a tokenizer of another make may add a twentieth.
        engine.max_model_len.get_or_insert(longest + longest / 20);
    }
}

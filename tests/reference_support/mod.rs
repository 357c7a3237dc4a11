//! Run directories in the reference experiment's layout, with counts and windows of one's choice.
//!
//! Writes what its driver and sampler would have: `driver.log`, `logs/tau2_global.log`, `kv_cache_timeseries.csv`
//! and, for a run that came to its end, `outputs/metrics_global.json`. Times are UTC. Events are spread evenly over
//! their part of the run; every seventh line of an ended task is glued behind a debug line, as happens in real logs.
//! [`PUBLISHED`] is what the experiment's documents say of its nine runs.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// Events before, inside and after the active window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) before: u32,
    pub(crate) inside: u32,
    pub(crate) after: u32,
}

/// What a run is to show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// `thunderreact`, `continuum` or `baseline`.
    pub(crate) policy: &'static str,
    /// Tasks in flight.
    pub(crate) concurrency: u32,
    /// When it was launched: `YYYYmmdd_HHMMSS`, part of the directory's name.
    pub(crate) stamp: &'static str,
    /// First and last sample with KV usage above 70 %, Unix seconds.
    pub(crate) window: (i64, i64),
    /// Tasks that ended without failing.
    pub(crate) tasks: Counts,
    /// Steps.
    pub(crate) steps: Counts,
    /// Tasks that failed.
    pub(crate) errors: u32,
    /// Length of the run in seconds; `None` where it was killed.
    pub(crate) elapsed_s: Option<f64>,
}

/// Tasks of a run of the experiment.
const TOTAL: u32 = 278;

/// Seconds of a run before its window.
const WARM_UP_S: i64 = 300;

/// The nine runs of 2026-01-04 and 05. Source: the experiment's memo and handoff document: windows, summaries, rates;
/// a count in the window is the only integer that gives the published rate. Of the steps only BL128's were published
/// as counts, the others are the published rate times the window. What lies outside was published for BL128 alone.
pub(crate) const PUBLISHED: [Shape; 9] = [
    published(
        "thunderreact",
        32,
        "20260104_052733",
        (1_767_504_800, 3788),
        (278, 238),
        11_250,
        0,
        Some(5350.3),
    ),
    published(
        "thunderreact",
        64,
        "20260104_070945",
        (1_767_510_821, 3607),
        (277, 248),
        12_156,
        1,
        Some(5352.0),
    ),
    published(
        "thunderreact",
        128,
        "20260104_084052",
        (1_767_516_246, 4921),
        (276, 266),
        12_401,
        0,
        None,
    ),
    published(
        "continuum",
        32,
        "20260104_191004",
        (1_767_554_345, 3992),
        (277, 236),
        11_297,
        1,
        Some(5140.8),
    ),
    published(
        "continuum",
        64,
        "20260104_205216",
        (1_767_560_287, 5569),
        (239, 232),
        10_525,
        39,
        Some(5772.6),
    ),
    published(
        "continuum",
        128,
        "20260104_223636",
        (1_767_566_530, 5866),
        (277, 236),
        11_556,
        0,
        None,
    ),
    published(
        "baseline",
        32,
        "20260105_062226",
        (1_767_595_273, 4069),
        (263, 228),
        12_004,
        15,
        Some(5516.4),
    ),
    published(
        "baseline",
        64,
        "20260105_081018",
        (1_767_601_628, 4275),
        (269, 251),
        12_056,
        9,
        Some(5168.6),
    ),
    published(
        "baseline",
        128,
        "20260105_101158",
        (1_767_608_063, 4473),
        (275, 262),
        12_658,
        3,
        Some(5566.3),
    ),
];

#[expect(clippy::too_many_arguments, reason = "a row of a table")]
const fn published(
    policy: &'static str,
    concurrency: u32,
    stamp: &'static str,
    window: (i64, i64),
    (ok, inside): (u32, u32),
    steps: u32,
    errors: u32,
    elapsed_s: Option<f64>,
) -> Shape {
    Shape {
        policy,
        concurrency,
        stamp,
        window: (window.0, window.0 + window.1),
        tasks: Counts {
            before: 1,
            inside,
            after: ok - 1 - inside,
        },
        steps: Counts {
            before: 432,
            inside: steps,
            after: 330,
        },
        errors,
        elapsed_s,
    }
}

impl Shape {
    /// The run's directory below `folder`, named as the experiment's launchers did.
    pub(crate) fn dir(&self, folder: &Path) -> PathBuf {
        folder.join(format!(
            "{}_c{}_{}",
            self.policy, self.concurrency, self.stamp
        ))
    }

    /// When the last task of BL128 ended: 16.6 minutes after its window; the same for all.
    fn end_s(&self) -> i64 {
        self.window.1 + 996
    }

    /// Writes the run below `folder` and returns its directory.
    pub(crate) fn write(&self, folder: &Path) -> PathBuf {
        let dir = self.dir(folder);
        fs::create_dir_all(dir.join("logs")).expect("a folder");
        fs::create_dir_all(dir.join("outputs")).expect("a folder");
        let mut lines = self.lines();
        lines.sort_by_key(|(at_s, _)| *at_s);
        let lines: Vec<_> = lines.into_iter().map(|(_, line)| line).collect();
        let profile: Vec<_> = lines
            .iter()
            .filter(|line| line.starts_with('[') && line.contains("thread="))
            .cloned()
            .collect();
        fs::write(dir.join("driver.log"), lines.join("\n") + "\n").expect("a log");
        fs::write(dir.join("logs/tau2_global.log"), profile.join("\n") + "\n").expect("a log");
        fs::write(dir.join("kv_cache_timeseries.csv"), self.samples()).expect("samples");
        if let Some(elapsed_s) = self.elapsed_s {
            fs::write(
                dir.join("outputs/metrics_global.json"),
                self.summary(elapsed_s),
            )
            .expect("a summary");
        }
        dir
    }

    fn ok(&self) -> u32 {
        self.tasks.before + self.tasks.inside + self.tasks.after
    }

    /// The moments of events: spread evenly over the three parts of the run, the last one at its end.
    fn moments(&self, counts: Counts) -> Vec<i64> {
        let (start, end) = self.window;
        let parts = [
            (start - WARM_UP_S, start - 1, counts.before),
            (start, end, counts.inside),
            (end + 1, self.end_s(), counts.after),
        ];
        let spread = |(from, to, count): (i64, i64, u32)| {
            (1..=i64::from(count)).map(move |index| from + (to - from) * index / i64::from(count))
        };
        parts.into_iter().flat_map(spread).collect()
    }

    fn lines(&self) -> Vec<(i64, String)> {
        let began = self.window.0 - WARM_UP_S - 1;
        let (concurrency, ended) = (self.concurrency, self.end_s());
        let mut lines = vec![(
            began,
            format!(
                "[{}] Scheduling mode: global (round-robin) total_tasks={TOTAL} max_concurrency={concurrency}",
                clock(began)
            ),
        )];
        for (index, at_s) in self.moments(self.steps).into_iter().enumerate() {
            lines.push((at_s, step(at_s, index)));
        }
        for (index, at_s) in self.moments(self.tasks).into_iter().enumerate() {
            let glue = if index % 7 == 6 {
                "DEBUG: vLLM request successful (took 1.23s) req_id=0"
            } else {
                ""
            };
            let (domain, task) = task(index);
            lines.push((
                at_s,
                format!(
                    "{glue}{}.500 | INFO     | tau2.run:run_task:568 - FINISHED SIMULATION: Domain: {domain}, \
                     Task: {task}, Agent: LLMAgent, User: UserSimulator. Reward: 1.0",
                    clock(at_s)
                ),
            ));
        }
        for index in 0..self.errors {
            let text = format!(
                "[{}] Task failed: domain=retail task_id=e{index} trial=0 error=1 validation error",
                clock(ended)
            );
            lines.push((ended, text));
        }
        if let Some(elapsed_s) = self.elapsed_s {
            let (ok, error) = (self.ok(), self.errors);
            let rate = f64::from(ok) / (elapsed_s / 60.0);
            let text = format!(
                "[{}] Global evaluation complete: ok={ok} error={error} total={} elapsed_s={elapsed_s:.1} tasks_per_min={rate:.2}",
                clock(ended),
                ok + error
            );
            lines.push((ended + 1, text));
        }
        lines
    }

    /// Two series every five seconds: cool outside the window, above 70 % at its two ends, up and down between.
    fn samples(&self) -> String {
        let (start, end) = self.window;
        let mut text = String::from("ts_iso,ts_unix,port,metric,value\n");
        let inside = (start..end).step_by(5).chain([end]);
        let times = (start - WARM_UP_S..start)
            .step_by(5)
            .chain(inside)
            .chain((end + 5..self.end_s() + 5).step_by(5));
        for at_s in times {
            let usage = match (at_s == start || at_s == end, (start..end).contains(&at_s)) {
                (true, _) => 0.700_000_1,
                (_, true) => [0.93, 0.55, 0.81][usize::try_from(at_s).expect("after 1970") / 5 % 3],
                _ => 0.21,
            };
            for metric in ["gpu_cache_usage_perc", "kv_cache_usage_perc"] {
                let iso = Timestamp::from_second(at_s)
                    .expect("a time")
                    .strftime("%Y-%m-%dT%H:%M:%S+00:00");
                let _ = writeln!(
                    text,
                    "{iso},{at_s},1900,vllm:{metric}{{engine=\"0\";model_name=\"/m\"}},{usage}"
                );
            }
        }
        text
    }

    fn summary(&self, elapsed_s: f64) -> String {
        let (ok, error) = (self.ok(), self.errors);
        let rate = f64::from(ok) / (elapsed_s / 60.0);
        format!(
            "{{\n  \"domains\": [\"retail\", \"telecom\", \"airline\"],\n  \"total\": {},\n  \"ok\": {ok},\n  \
             \"error\": {error},\n  \"elapsed_s\": {elapsed_s},\n  \"tasks_per_min\": {rate}\n}}",
            ok + error
        )
    }
}

fn clock(at_s: i64) -> impl std::fmt::Display {
    Timestamp::from_second(at_s)
        .expect("a time")
        .strftime("%Y-%m-%d %H:%M:%S")
}

/// Three domains take turns.
fn task(index: usize) -> (&'static str, usize) {
    (["retail", "telecom", "airline"][index % 3], index / 3)
}

fn step(at_s: i64, index: usize) -> String {
    let (domain, task) = task(index % 278);
    let (from, to) = [
        ("user", "agent"),
        ("agent", "env"),
        ("env", "agent"),
        ("agent", "user"),
    ][index % 4];
    format!(
        "[PROFILE] {}.250 task={domain}:{task} thread=140000000000000 type=step_complete step={} \
         total_duration_ms=1500.00 from_role={from} to_role={to}",
        clock(at_s),
        index / 278
    )
}

//! What a line of `driver.log` truly tells, however it is glued to others. Pure: a line in, events out.
//!
//! Several threads write to the file without taking turns, so that a record may begin behind the end of another, or
//! in the middle of a debug line. Hence a line is cut at every text that begins a record, and each part is read by
//! itself. The scripts counted otherwise, see [`super::scripts`].

use aho_corasick::{AhoCorasick, BuildError};

use super::local_time::{self, LocalTime};
use super::profile::{self, LEVELS, Record};

/// Texts of which a line with an event holds at least one.
pub const MARKS: [&str; 10] = [
    "FINISHED SIMULATION",
    "STARTING SIMULATION",
    "[TAU2_TASK_COMPLETE]",
    "Global evaluation complete",
    "Loaded tasks:",
    "Scheduling mode:",
    "Task failed:",
    LEVELS[0].0,
    LEVELS[1].0,
    LEVELS[2].0,
];

/// Texts that begin no event, but end the one before.
const BREAKS: [&str; 2] = ["| DEBUG ", "DEBUG: "];

/// What stands before a marker that was printed as a Python tuple.
pub const TUPLE: &str = "('";

/// Characters of an unread record that are shown.
const SHOWN: usize = 200;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// The tasks of a domain were loaded.
    Loaded {
        /// The domain.
        domain: &'a str,
        /// Tasks of it that will be run.
        tasks: u64,
        /// How often each.
        trials: u64,
    },
    /// The run begins.
    Scheduled {
        /// When.
        at: LocalTime,
        /// Tasks that will be run, times trials.
        total_tasks: u64,
        /// Tasks in flight at any time.
        max_concurrency: Option<u64>,
    },
    /// A task begins.
    Started {
        /// When.
        at: LocalTime,
        /// Its domain.
        domain: &'a str,
        /// Its id, unique in the domain.
        task: &'a str,
    },
    /// A task was simulated to its end and judged; tasks that fail have none.
    Finished {
        /// When.
        at: LocalTime,
        /// Its domain.
        domain: &'a str,
        /// Its id.
        task: &'a str,
        /// The judge's, 0 to 1.
        reward: f64,
    },
    /// A task left the run, whether it failed or not.
    Left {
        /// Its domain.
        domain: &'a str,
        /// Its id.
        task: &'a str,
        /// Which repetition.
        trial: u32,
        /// `ok`, `error` or `skipped`.
        status: &'a str,
        /// Tasks that have left so far, of the domain or of all.
        completed: u64,
        /// Tasks of the domain or of all.
        total: u64,
    },
    /// A task failed.
    Failed {
        /// When.
        at: LocalTime,
        /// Its domain.
        domain: &'a str,
        /// Its id.
        task: &'a str,
        /// Which repetition.
        trial: u32,
        /// The exception's first line.
        error: &'a str,
    },
    /// The run is over.
    Complete {
        /// When.
        at: LocalTime,
        /// Tasks that did not fail.
        ok: u64,
        /// Tasks that did.
        error: u64,
        /// All of them.
        total: u64,
        /// How long it took, in seconds.
        elapsed_s: f64,
        /// Tasks that did not fail, per minute of that.
        tasks_per_min: f64,
    },
    /// A timing or an error.
    Record(Record<'a>),
}

/// Cuts lines into records and reads them.
#[derive(Clone, Debug)]
pub struct Parser(AhoCorasick);

/// Where a record begins, where the text that tells its sort stands, and which that is.
#[derive(Clone, Copy)]
struct Cut {
    start: usize,
    at: usize,
    mark: usize,
}

/// What became of one record.
enum Reading<'a> {
    Event(Event<'a>),
    /// A text that only looks like a record: a model's words, or a line that tells nothing.
    Nothing,
    Unread,
}

impl Parser {
    /// A parser.
    ///
    /// # Errors
    /// Never, as the texts are fixed.
    pub fn new() -> Result<Self, BuildError> {
        AhoCorasick::new(MARKS.iter().chain(&BREAKS)).map(Self)
    }

    /// Calls `each` with every event of a line, in the order of their places; a record that cannot be read is an
    /// error with its text, cut to a readable length. Returns how many events stood behind other text.
    pub fn events<'a>(
        &self,
        line: &'a str,
        mut each: impl FnMut(Result<Event<'a>, &'a str>),
    ) -> u64 {
        let mut cuts: Vec<Cut> = Vec::new();
        for hit in self.0.find_iter(line) {
            let after = cuts.last().map_or(0, |cut| cut.at + 1);
            let start = start_of(line, after, hit.start());
            cuts.push(Cut {
                start,
                at: hit.start(),
                mark: hit.pattern().as_usize(),
            });
        }
        let mut glued = 0;
        for (index, cut) in cuts.iter().enumerate() {
            let end = cuts.get(index + 1).map_or(line.len(), |next| next.start);
            let (Some(before), Some(text)) = (line.get(cut.start..cut.at), line.get(cut.at..end))
            else {
                continue;
            };
            match read(cut.mark, before, text.trim_end()) {
                Reading::Event(event) => {
                    glued += u64::from(!matches!(line.get(..cut.start), Some("" | TUPLE)));
                    each(Ok(event));
                }
                Reading::Nothing => {}
                Reading::Unread => each(Err(shortened(line.get(cut.start..end).unwrap_or(text)))),
            }
        }
        glued
    }
}

/// Where the record begins whose telling text stands at `at`: at its time, if it has one before it.
fn start_of(line: &str, after: usize, at: usize) -> usize {
    let bytes = line.as_bytes();
    if bytes[at] == b'[' || bytes[at..].starts_with(b"DEBUG: ") {
        return at;
    }
    let Some(time) = bytes.get(after..at).and_then(local_time::rfind) else {
        return at;
    };
    let time = after + time;
    if time > after && bytes[time - 1] == b'[' {
        time - 1
    } else {
        time
    }
}

fn read<'a>(mark: usize, before: &'a str, text: &'a str) -> Reading<'a> {
    let at = LocalTime::parse(before.trim_start_matches('[').as_bytes());
    // The driver's own lines are a time in brackets and then the text; a model may say the same words.
    let driver = before.starts_with('[') && before.ends_with("] ");
    let event = match (mark, at) {
        (0, Some(at)) => finished(text, at),
        (1, Some(at)) => started(text, at),
        (0 | 1, None) => None,
        (2, _) => left(text),
        (3..=6, Some(at)) if driver => match mark {
            3 => complete(text, at),
            4 => loaded(text),
            5 if !text.contains("total_tasks=") => return Reading::Nothing,
            5 => scheduled(text, at),
            _ => failed(text, at),
        },
        (7..=9, _) => match Record::parse(text) {
            None if mark == 9 => return Reading::Nothing,
            record => record.map(Event::Record),
        },
        _ => return Reading::Nothing,
    };
    event.map_or(Reading::Unread, Reading::Event)
}

/// `MARK: Domain: D, Task: T, Agent: ...`, with what follows the task.
fn simulation(text: &str) -> Option<(&str, &str, &str)> {
    let (_, rest) = text.split_once("Domain: ")?;
    let (domain, rest) = rest.split_once(", Task: ")?;
    let (task, rest) = rest.split_once(", Agent: ")?;
    Some((domain, task, rest))
}

fn started(text: &str, at: LocalTime) -> Option<Event<'_>> {
    let (domain, task, _) = simulation(text)?;
    Some(Event::Started { at, domain, task })
}

fn finished(text: &str, at: LocalTime) -> Option<Event<'_>> {
    let (domain, task, rest) = simulation(text)?;
    let (_, reward) = rest.rsplit_once("Reward: ")?;
    let end = reward
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(reward.len());
    let reward = reward.get(..end)?.parse().ok()?;
    Some(Event::Finished {
        at,
        domain,
        task,
        reward,
    })
}

/// Plain, or as the Python tuple `('[TAU2_TASK_COMPLETE] ...',)` that a stray comma made of it.
fn left(text: &str) -> Option<Event<'_>> {
    let text = text.strip_suffix("',)").unwrap_or(text);
    Some(Event::Left {
        domain: profile::field(text, "domain")?,
        task: profile::field(text, "task_id")?,
        trial: number(text, "trial")?,
        status: profile::field(text, "status")?,
        completed: number(text, "completed_global").or_else(|| number(text, "completed_domain"))?,
        total: number(text, "total_global").or_else(|| number(text, "total_domain"))?,
    })
}

fn complete(text: &str, at: LocalTime) -> Option<Event<'_>> {
    Some(Event::Complete {
        at,
        ok: number(text, "ok")?,
        error: number(text, "error")?,
        total: number(text, "total")?,
        elapsed_s: number(text, "elapsed_s")?,
        tasks_per_min: number(text, "tasks_per_min")?,
    })
}

fn loaded(text: &str) -> Option<Event<'_>> {
    let domain = profile::field(text, "domain")?;
    Some(Event::Loaded {
        domain,
        tasks: number(text, "tasks")?,
        trials: number(text, "trials")?,
    })
}

fn scheduled(text: &str, at: LocalTime) -> Option<Event<'_>> {
    let total_tasks = number(text, "total_tasks")?;
    Some(Event::Scheduled {
        at,
        total_tasks,
        max_concurrency: number(text, "max_concurrency"),
    })
}

fn failed(text: &str, at: LocalTime) -> Option<Event<'_>> {
    let (pairs, error) = text.split_once(" error=")?;
    Some(Event::Failed {
        at,
        domain: profile::field(pairs, "domain")?,
        task: profile::field(pairs, "task_id")?,
        trial: number(pairs, "trial")?,
        error,
    })
}

fn number<T: std::str::FromStr>(text: &str, name: &str) -> Option<T> {
    profile::field(text, name)?.parse().ok()
}

fn shortened(text: &str) -> &str {
    let end = text
        .char_indices()
        .nth(SHOWN)
        .map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(line: &str) -> Vec<Result<Event<'_>, &str>> {
        let mut found = Vec::new();
        Parser::new()
            .unwrap()
            .events(line, |event| found.push(event));
        found
    }

    fn at(text: &str) -> LocalTime {
        LocalTime::parse(text.as_bytes()).unwrap()
    }

    const FINISHED: &str = "2026-01-05 08:03:24.500 | INFO     | tau2.run:run_task:568 - FINISHED SIMULATION: \
        Domain: telecom, Task: [m]case_7|x[PERSONA:None], Agent: LLMAgent, User: UserSimulator. Reward: 1.0";

    #[test]
    fn each_sort_of_line_is_read() {
        let now = at("2026-11-24 02:57:49");
        let lines = [
            (
                "[2026-11-24 02:57:49] Loaded tasks: domain=mock tasks=6 trials=1 path=/d/tasks.json",
                Event::Loaded {
                    domain: "mock",
                    tasks: 6,
                    trials: 1,
                },
            ),
            (
                "[2026-11-24 02:57:49] Scheduling mode: global (round-robin) total_tasks=18 max_concurrency=4",
                Event::Scheduled {
                    at: now,
                    total_tasks: 18,
                    max_concurrency: Some(4),
                },
            ),
            (
                "2026-11-24 02:57:49 | INFO     | tau2.run:run_task:476 - STARTING SIMULATION: Domain: retail, Task: 0, Agent: a, User: u",
                Event::Started {
                    at: now,
                    domain: "retail",
                    task: "0",
                },
            ),
            (
                "[2026-11-24 02:57:49] Task failed: domain=retail task_id=5 trial=0 error=1 validation error for M",
                Event::Failed {
                    at: now,
                    domain: "retail",
                    task: "5",
                    trial: 0,
                    error: "1 validation error for M",
                },
            ),
            (
                "[2026-11-24 02:57:49] Global evaluation complete: ok=15 error=3 total=18 elapsed_s=35.8 tasks_per_min=25.15",
                Event::Complete {
                    at: now,
                    ok: 15,
                    error: 3,
                    total: 18,
                    elapsed_s: 35.8,
                    tasks_per_min: 25.15,
                },
            ),
        ];
        for (line, event) in lines {
            assert_eq!(events(line), [Ok(event)]);
        }
        assert_eq!(
            events("[2026-11-24 02:57:49] Scheduling mode: global (cross-domain)"),
            []
        );
    }

    #[test]
    fn a_marker_is_read_plain_and_as_a_tuples_text() {
        let left = Event::Left {
            domain: "retail",
            task: "0",
            trial: 0,
            status: "ok",
            completed: 4,
            total: 18,
        };
        let tuple = "('[TAU2_TASK_COMPLETE] domain=retail trial=0 task_id=0 status=ok completed_global=4 total_global=18',)";
        assert_eq!(events(tuple), [Ok(left)]);
        assert_eq!(
            Parser::new().unwrap().events(tuple, |_| ()),
            0,
            "glued to nothing"
        );
        let plain = "[TAU2_TASK_COMPLETE] domain=retail trial=0 task_id=0 status=ok completed_domain=4 total_domain=18";
        assert_eq!(events(plain), [Ok(left)]);
    }

    #[test]
    fn glued_records_are_all_read_each_with_its_own_time() {
        let step = "[PROFILE] 2026-01-05 08:00:18.696 task=retail:0 thread=1 type=step_complete step=0 \
            total_duration_ms=6.5 from_role=user to_role=agent";
        let line = format!(
            "DEBUG: done (took 1.23s) req_id=0-4000-8000-00{step}{FINISHED}{step}DEBUG: Calling{FINISHED}"
        );
        assert_eq!(Parser::new().unwrap().events(&line, |_| ()), 4);
        let found: Vec<_> = events(&line).into_iter().map(Result::unwrap).collect();
        assert_eq!(found.len(), 4);
        for event in [found[0], found[2]] {
            let Event::Record(record) = event else {
                panic!("{event:?}")
            };
            assert_eq!(record.edge(), Some(("user", "agent")));
        }
        let reward = 1.0;
        let finished = Event::Finished {
            at: at("2026-01-05 08:03:24.500"),
            domain: "telecom",
            task: "[m]case_7|x[PERSONA:None]",
            reward,
        };
        assert_eq!((found[1], found[3]), (finished, finished));
    }

    #[test]
    fn what_cannot_be_read_is_told_and_words_of_a_model_are_not() {
        let cut = "[PROFILE] 2026-01-05 08:00:18.696 task=retail:0 thr";
        assert_eq!(events(cut), [Err(cut)]);
        let (cut, _) = FINISHED.split_at(90);
        assert_eq!(events(cut), [Err(cut)]);
        assert_eq!(events("content: Task failed: domain=x [ERROR] no"), []);
        let long = format!("[PROFILE] {}", "é".repeat(SHOWN));
        assert_eq!(events(&long)[0].unwrap_err().chars().count(), SHOWN);
    }
}

//! Program inference on captured traffic, held against the truth: whose step every request is, by its messages
//! alone.
//!
//! Each capture prints one line of the table that the README quotes. A request is *right* if it joins the
//! program whose last request was the truth's own last one, or begins a program when the truth does; *swapped*
//! if it joins a twin whose history is equal, message by message, to its own; *wrong* if it joins any other;
//! *fragmented* if it begins a program without need; *joined* if a program's first request joins another's.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may stop at the first surprise, and says what it measured"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kvgate::policy::Time;
use kvgate::proxy::infer::{
    Conversation, Inference, InferredId, Limits, Match, ReplyHasher, Ticket,
};
use serde_json::{Value, json};

/// One request of a capture.
struct Step {
    program: String,
    role: String,
    model: String,
    messages: Vec<Value>,
    reply: Value,
    /// When it arrived and when its reply had passed, in microseconds.
    us: [u64; 2],
}

/// What became of a role's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    programs: usize,
    requests: usize,
    right: usize,
    /// Of the right and swapped ones: those that several programs could have taken.
    ambiguous: usize,
    swapped: usize,
    wrong: usize,
    fragmented: usize,
    joined: usize,
}

impl Tally {
    /// Steps given to another program than their own.
    const fn misassigned(&self) -> usize {
        self.swapped + self.wrong + self.fragmented + self.joined
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:8} {:8} {:6} {:9} {:7} {:5} {:10} {:6}",
            self.programs,
            self.requests,
            self.right,
            self.ambiguous,
            self.swapped,
            self.wrong,
            self.fragmented,
            self.joined
        )
    }
}

/// What happens in a capture, in the order of time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Replied,
    Arrived,
}

/// Plays a capture to a fresh table and holds every answer against the truth; one tally per role, and how many
/// programs the replies ended.
fn judge(name: &str, steps: &[Step]) -> (BTreeMap<String, Tally>, usize) {
    let mut events: Vec<(u64, Kind, usize)> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        events.extend([
            (step.us[0], Kind::Arrived, i),
            (step.us[1], Kind::Replied, i),
        ]);
    }
    events.sort_unstable();
    let mut judge = Judge::new();
    for (us, kind, i) in events {
        let now = Time::from_nanos(us * 1000);
        match kind {
            Kind::Arrived => judge.arrived(now, i, &steps[i]),
            Kind::Replied => judge.replied(now, i, &steps[i]),
        }
    }
    for (role, tally) in &judge.tallies {
        println!("{name:24} {role:6} {tally}");
    }
    (judge.tallies, judge.ended)
}

struct Judge {
    infer: Inference,
    tickets: BTreeMap<usize, Ticket>,
    /// The truth of each inferred program's last request, and its messages.
    held: BTreeMap<InferredId, (String, Vec<Value>)>,
    /// Truth's programs, by the messages of their last request.
    truth: BTreeMap<String, Vec<Value>>,
    tallies: BTreeMap<String, Tally>,
    ended: usize,
}

impl Judge {
    fn new() -> Self {
        Self {
            infer: Inference::new(Limits {
                max_programs: 10_000,
                idle: Duration::from_secs(3600),
            }),
            tickets: BTreeMap::new(),
            held: BTreeMap::new(),
            truth: BTreeMap::new(),
            tallies: BTreeMap::new(),
            ended: 0,
        }
    }

    fn arrived(&mut self, now: Time, i: usize, step: &Step) {
        let text = serde_json::to_vec(&step.messages).unwrap();
        let conversation = Conversation::read(&step.model, &text).unwrap();
        let inferred = self.infer.arrive(now, &conversation).unwrap();
        let tally = self.tallies.entry(step.role.clone()).or_default();
        let before = self
            .truth
            .insert(step.program.clone(), step.messages.clone());
        let held = self.held.insert(
            inferred.ticket.program,
            (step.program.clone(), step.messages.clone()),
        );
        tally.requests += 1;
        tally.programs += usize::from(before.is_none());
        tally.ambiguous += usize::from(inferred.by == Match::Twins);
        let field = match (before, held) {
            (None, None) => &mut tally.right,
            (Some(_), Some((program, _))) if program == step.program => &mut tally.right,
            (Some(before), Some((_, messages))) if before == messages => &mut tally.swapped,
            (Some(_), Some(_)) => &mut tally.wrong,
            (Some(_), None) => &mut tally.fragmented,
            (None, Some(_)) => &mut tally.joined,
        };
        *field += 1;
        self.tickets.insert(i, inferred.ticket);
    }

    fn replied(&mut self, now: Time, i: usize, step: &Step) {
        let ticket = self.tickets.remove(&i).unwrap();
        let body =
            json!({"object": "chat.completion", "choices": [{"index": 0, "message": step.reply}]});
        let mut hasher = ReplyHasher::whole();
        hasher.push(&serde_json::to_vec(&body).unwrap());
        self.infer.replied(now, ticket, hasher.digest().unwrap());
        let over = self.infer.finished(now, ticket);
        self.ended += over.into_iter().flatten().count();
    }
}

/// Reads a capture; its README says how it is written.
fn capture(name: &str) -> Vec<Step> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/infer");
    let text = std::fs::read_to_string(path.join(name)).unwrap();
    let mut messages: Vec<Value> = Vec::new();
    let mut last: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut steps = Vec::new();
    // A reply stands after the request that it answers, so requests are resolved at the end.
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for line in &lines {
        messages.extend(line.get("message").cloned());
    }
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    for request in lines.iter().filter_map(|line| line.get("request")) {
        let word = |key: &str| request[key].as_str().unwrap().to_owned();
        let history = last.entry(word("program")).or_default();
        history.truncate(number(&request["keeps"]));
        let adds = request["adds"].as_array().unwrap();
        history.extend(adds.iter().map(|add| messages[number(add)].clone()));
        steps.push(Step {
            program: word("program"),
            role: word("role"),
            model: word("model"),
            messages: history.clone(),
            reply: messages[number(&request["reply"])].clone(),
            us: [0, 1].map(|i| request["us"][i].as_u64().unwrap()),
        });
    }
    steps
}

fn header() {
    println!(
        "capture                  role   programs requests  right ambiguous swapped wrong fragmented joined"
    );
}

#[test]
fn no_agent_step_of_36_simulations_at_once_goes_astray() {
    header();
    let (tallies, ended) = judge("retail, 36 at once", &capture("retail-36.jsonl"));
    println!("ended: {ended}");
    println!("{tallies:?}");
}

#[test]
fn a_client_that_rewrites_replies_and_asks_experts_is_followed() {
    header();
    let (tallies, ended) = judge("fork, 6 simulations", &capture("fork-6.jsonl"));
    println!("ended: {ended}");
    println!("{tallies:?}");
}

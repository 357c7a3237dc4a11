//! Program inference on captured traffic, held against the truth: whose step every request is, by its messages
//! alone.
//!
//! Each capture prints the sums that the README quotes, and one line for every program of the truth. A request is
//! *right* if it joins the program whose last request was the truth's own last one, or begins a program when the
//! truth does; *swapped* if it joins a twin whose history is equal, message by message, to its own; *wrong* if it
//! joins any other; *fragmented* if it begins a program without need; *joined* if a program's first request joins
//! another's. *By seed* are those that only their seed told from twins, *ambiguous* those that nothing did.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may stop at the first surprise, and says what it measured"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use kvgate::policy::Time;
use kvgate::proxy::infer::{
    Conversation, Inference, InferredId, Limits, Match, ReplyHasher, Ticket,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// One request of a capture.
struct Step {
    program: String,
    role: String,
    model: String,
    seed: Option<u64>,
    messages: Vec<Value>,
    reply: Value,
    /// When it arrived and when its reply had passed, in microseconds.
    us: [u64; 2],
}

/// What became of a program's requests, or of a role's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Names that the inference gave to programs that began.
    names: BTreeSet<InferredId>,
    requests: usize,
    right: usize,
    /// Those that several programs could have taken, and one had their seed.
    by_seed: usize,
    /// Those that several programs could have taken.
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

    fn add(&mut self, other: &Self) {
        self.names.extend(&other.names);
        for (sum, part) in [
            (&mut self.requests, other.requests),
            (&mut self.right, other.right),
            (&mut self.by_seed, other.by_seed),
            (&mut self.ambiguous, other.ambiguous),
            (&mut self.swapped, other.swapped),
            (&mut self.wrong, other.wrong),
            (&mut self.fragmented, other.fragmented),
            (&mut self.joined, other.joined),
        ] {
            *sum += part;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:5} {:8} {:6} {:7} {:9} {:7} {:5} {:10} {:6}",
            self.names.len(),
            self.requests,
            self.right,
            self.by_seed,
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

/// Plays a capture to a fresh table and holds every answer against the truth.
fn judge(name: &str, steps: &[Step]) -> Judge {
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
    for role in ["agent", "user"] {
        println!("{name:24} {role:8} {}", judge.role(role));
    }
    judge
}

struct Judge {
    infer: Inference,
    tickets: BTreeMap<usize, Ticket>,
    /// The truth of each inferred program's last request, and its messages.
    held: BTreeMap<InferredId, (String, Vec<Value>)>,
    /// Truth's programs, by the messages of their last request.
    truth: BTreeMap<String, Vec<Value>>,
    /// By program of the truth, with its role.
    programs: BTreeMap<String, (String, Tally)>,
    /// Programs that were said to be over, and those of them whose simulation was not.
    ended: usize,
    ended_wrongly: usize,
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
            programs: BTreeMap::new(),
            ended: 0,
            ended_wrongly: 0,
        }
    }

    fn arrived(&mut self, now: Time, i: usize, step: &Step) {
        let text = serde_json::to_vec(&step.messages).unwrap();
        let seed = step.seed.map(|seed| seed.to_string());
        let conversation = Conversation::read(&step.model, &text).unwrap();
        let conversation = conversation.with_seed(seed.as_deref().map(str::as_bytes));
        let inferred = self.infer.arrive(now, &conversation).unwrap();
        let fresh = || (step.role.clone(), Tally::default());
        let (_, tally) = self
            .programs
            .entry(step.program.clone())
            .or_insert_with(fresh);
        let before = self
            .truth
            .insert(step.program.clone(), step.messages.clone());
        let held = self.held.insert(
            inferred.ticket.program,
            (step.program.clone(), step.messages.clone()),
        );
        tally.requests += 1;
        tally.names.insert(inferred.ticket.program);
        tally.by_seed += usize::from(inferred.by == Match::Seed);
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
        let simulation = |program: &str| program.split(':').next().unwrap().to_owned();
        for program in over.into_iter().flatten() {
            self.ended += 1;
            let (last, _) = &self.held[&program];
            self.ended_wrongly += usize::from(simulation(last) != simulation(&step.program));
        }
    }
}

impl Judge {
    fn print_programs(&self, name: &str) {
        for (program, (_, tally)) in &self.programs {
            println!("{name:24} {program:8} {tally}");
        }
    }

    /// The sum of a role's programs.
    fn role(&self, role: &str) -> Tally {
        let mut sum = Tally::default();
        let tallies = self.programs.values().filter(|(of, _)| of == role);
        tallies.for_each(|(_, tally)| sum.add(tally));
        sum
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
            seed: request["seed"].as_u64(),
            messages: history.clone(),
            reply: messages[number(&request["reply"])].clone(),
            us: [0, 1].map(|i| request["us"][i].as_u64().unwrap()),
        });
    }
    steps
}

fn header() {
    println!(
        "capture                  program  names requests  right by seed ambiguous swapped wrong fragmented joined"
    );
}

/// At most one step in a hundred went to another program than its own.
fn assert_within_one_percent(tally: &Tally) {
    assert!(tally.misassigned() * 100 <= tally.requests, "{tally:?}");
}

/// Whatever was misassigned went to a twin with an equal history: no program was split, joined or mixed up.
fn assert_only_swaps(tally: &Tally) {
    let harm = tally.wrong + tally.fragmented + tally.joined;
    assert_eq!(harm, 0, "{tally:?}");
    // A swap needs something to choose from, then or at an earlier step of the same twins.
    assert!(tally.swapped == 0 || tally.ambiguous > 0, "{tally:?}");
}

#[test]
fn no_step_of_36_simulations_at_once_goes_astray() {
    header();
    let judged = judge("retail, 36 at once", &capture("retail-36.jsonl"));
    judged.print_programs("retail, 36 at once");
    assert_eq!(judged.programs.len(), 72);
    for (role, requests) in [("agent", 318), ("user", 180)] {
        let tally = judged.role(role);
        assert_eq!((tally.requests, tally.right), (requests, requests));
    }
    assert!(judged.role("user").by_seed > 0, "or no twins met");
    // Every simulator ended by its mark, and each took its own agent along.
    assert_eq!((judged.ended, judged.ended_wrongly), (72, 0));
}

#[test]
fn without_their_seeds_only_simulators_with_equal_histories_are_swapped() {
    header();
    let mut steps = capture("retail-36.jsonl");
    for step in &mut steps {
        step.seed = None;
    }
    let judged = judge("the same without seeds", &steps);
    judged.print_programs("the same without seeds");
    assert_eq!(judged.role("agent").right, 318);
    assert_only_swaps(&judged.role("user"));
    assert_eq!((judged.ended, judged.ended_wrongly), (72, 0));
}

#[test]
fn a_client_that_rewrites_replies_and_asks_experts_is_followed() {
    header();
    let judged = judge("rewriting client", &capture("fork-6.jsonl"));
    judged.print_programs("rewriting client");
    for (_, tally) in judged.programs.values() {
        assert_eq!((tally.right, tally.names.len()), (tally.requests, 1));
    }
    assert_eq!(judged.programs.len(), 6);
}

#[test]
fn of_32_simulations_at_once_no_agent_step_goes_astray_though_their_openings_collide() {
    header();
    for seed in 0..4 {
        let steps = generate(seed, 96, 32, Opening::Call);
        let judged = judge(&format!("generated, seed {seed}"), &steps);
        let mut both = judged.role("agent");
        assert_eq!(both.misassigned(), 0, "{both:?}");
        assert_only_swaps(&judged.role("user"));
        both.add(&judged.role("user"));
        assert_within_one_percent(&both);
        assert_eq!(judged.ended_wrongly, 0);
    }
}

#[test]
fn agents_that_open_with_equal_words_are_swapped_while_their_histories_are_equal_and_never_mixed_up()
 {
    header();
    let steps = generate(1, 96, 32, Opening::Words);
    let judged = judge("generated, equal words", &steps);
    let agents = judged.role("agent");
    assert_only_swaps(&agents);
    assert!(agents.swapped > 0, "or this capture shows nothing");
}

/// How the agents of a generated capture begin.
#[derive(Clone, Copy)]
enum Opening {
    /// With a tool call, whose id is the call's own.
    Call,
    /// With the same sentence.
    Words,
}

impl Opening {
    /// How many scenarios the users have between them.
    const fn scenarios(self) -> usize {
        match self {
            Self::Call => 15,
            Self::Words => 2,
        }
    }
}

/// One simulation of a generated capture: an agent and a simulated user that talk in turn.
struct Simulation {
    name: usize,
    agent: Vec<Value>,
    user: Vec<Value>,
    turns: usize,
}

/// A capture of `simulations` simulations, `at_once` of them at a time, in the shapes of telecom: 15 scenarios
/// shared by all, one agent policy, 4 to 13 user turns, 0 to 3 tool calls a turn, one in five steps with two
/// calls. All texts are drawn from a few, so that openings and histories collide.
fn generate(seed: u64, simulations: usize, at_once: usize, opening: Opening) -> Vec<Step> {
    let mut draw = ChaCha8Rng::seed_from_u64(seed);
    let mut steps = Vec::new();
    // The simulations are dealt out to `at_once` workers, each with a clock of its own.
    let mut clocks = vec![0_u64; at_once];
    for name in 0..simulations {
        let worker = name % at_once;
        let scenario = draw.random_range(0..opening.scenarios());
        let simulation = Simulation {
            name,
            agent: vec![
                message("system", "<policy>"),
                message("assistant", "Hi! How can I help you today?"),
            ],
            user: vec![
                message("system", &format!("<scenario> {scenario}")),
                message("user", "Hi! How can I help you today?"),
            ],
            turns: draw.random_range(4..14),
        };
        clocks[worker] = simulation.play(clocks[worker], scenario, opening, &mut draw, &mut steps);
    }
    steps
}

fn message(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

impl Simulation {
    /// Plays to the end; returns when.
    fn play(
        mut self,
        mut us: u64,
        scenario: usize,
        opening: Opening,
        draw: &mut ChaCha8Rng,
        steps: &mut Vec<Step>,
    ) -> u64 {
        for turn in 0..=self.turns {
            let heard = match turn {
                0 => format!("My problem is {scenario}"),
                _ if turn == self.turns => "###STOP###".to_owned(),
                _ => format!("answer {}", draw.random_range(0..3)),
            };
            us = self.step("user", message("assistant", &heard), us, draw, steps);
            if turn == self.turns {
                break;
            }
            self.agent.push(message("user", &heard));
            let opens_with_words = matches!(opening, Opening::Words) && turn == 0;
            let calls = match turn {
                0 if !opens_with_words => draw.random_range(1..3),
                0 => 0,
                _ => draw.random_range(0..4),
            };
            for _ in 0..calls {
                us = self.call(us, draw, steps);
            }
            let questions = if opens_with_words { 1 } else { 3 };
            let said = format!("question {}", draw.random_range(0..questions));
            us = self.step("agent", message("assistant", &said), us, draw, steps);
            self.user.push(message("user", &said));
        }
        us
    }

    /// One agent step that calls one tool or two, and their results.
    fn call(&mut self, us: u64, draw: &mut ChaCha8Rng, steps: &mut Vec<Step>) -> u64 {
        let ids: Vec<String> = (0..=u32::from(draw.random_bool(0.2)))
            .map(|_| format!("call_{:012x}", draw.random::<u64>()))
            .collect();
        let call = |id: &String| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
        let calls: Vec<Value> = ids.iter().map(call).collect();
        let reply = json!({"role": "assistant", "content": null, "tool_calls": calls});
        let us = self.step("agent", reply, us, draw, steps);
        let result =
            |id| json!({"role": "tool", "tool_call_id": id, "content": "{\"status\": \"ok\"}"});
        self.agent.extend(ids.iter().map(result));
        // The tool itself.
        us + draw.random_range(200..3_000)
    }

    /// One request and its reply, which joins the history; returns when it has passed.
    fn step(
        &mut self,
        role: &str,
        reply: Value,
        us: u64,
        draw: &mut ChaCha8Rng,
        steps: &mut Vec<Step>,
    ) -> u64 {
        let history = if role == "agent" {
            &mut self.agent
        } else {
            &mut self.user
        };
        let start = us + draw.random_range(1_000..50_000);
        let end = start + draw.random_range(50_000..2_000_000);
        steps.push(Step {
            program: format!("{}:{role}", self.name),
            role: role.to_owned(),
            model: "m".to_owned(),
            seed: None,
            messages: history.clone(),
            reply: reply.clone(),
            us: [start, end],
        });
        history.push(reply);
        end
    }
}

//! One rule of the table each, on a clock that the test moves.

use serde_json::{Value, json};

use super::*;

const IDLE: Duration = Duration::from_secs(60);

/// A table under test, and its clock.
struct Table {
    infer: Inference,
    now: Time,
}

fn table(max_programs: usize) -> Table {
    let limits = Limits {
        max_programs,
        idle: IDLE,
    };
    Table {
        infer: Inference::new(limits),
        now: Time::ZERO,
    }
}

impl Table {
    fn ask_model(&mut self, model: &str, messages: &[Value]) -> Option<Inferred> {
        let text = Value::from(messages).to_string();
        self.now = self.now + Duration::from_secs(1);
        let conversation = Conversation::read(model, text.as_bytes())?;
        self.infer.arrive(self.now, &conversation)
    }

    fn ask_with_seed(&mut self, seed: &str, messages: &[Value]) -> Inferred {
        let text = Value::from(messages).to_string();
        self.now = self.now + Duration::from_secs(1);
        let conversation = Conversation::read("m", text.as_bytes()).unwrap();
        let conversation = conversation.with_seed(Some(seed.as_bytes()));
        self.infer.arrive(self.now, &conversation).unwrap()
    }

    fn ask(&mut self, messages: &[Value]) -> Inferred {
        self.ask_model("m", messages).unwrap()
    }

    /// Answers a request; the programs that end with it.
    fn answer(&mut self, asked: Inferred, message: &Value) -> [Option<InferredId>; 2] {
        let body = json!({"choices": [{"index": 0, "message": message}]});
        let mut hasher = ReplyHasher::whole();
        hasher.push(&serde_json::to_vec(&body).unwrap());
        self.now = self.now + Duration::from_secs(1);
        let reply = hasher.digest().unwrap();
        self.infer.replied(self.now, asked.ticket, reply);
        self.infer.finished(self.now, asked.ticket)
    }

    fn fail(&mut self, asked: Inferred) {
        let ended = self.infer.finished(self.now, asked.ticket);
        assert_eq!(ended, [None; 2]);
    }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn says(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn calls(id: &str) -> Value {
    json!({"role": "assistant", "content": null, "tool_calls": [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}]})
}

fn result(id: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": "done"})
}

#[test]
fn a_growing_history_is_one_program() {
    let mut table = table(10);
    let mut history = vec![user("u")];
    let mut programs = Vec::new();
    for id in ["a", "b", "c"] {
        let asked = table.ask(&history);
        table.answer(asked, &calls(id));
        history.extend([calls(id), result(id)]);
        programs.push((asked.ticket.program, asked.by));
    }
    let program = programs[0].0;
    assert_eq!(
        programs,
        [
            (program, Match::New),
            (program, Match::Reply),
            (program, Match::Reply)
        ]
    );
    assert_eq!(table.infer.len(), 1);
}

#[test]
fn equal_first_requests_are_told_apart_by_their_replies() {
    let mut table = table(10);
    let [a, b] = [(); 2].map(|()| table.ask(&[user("u")]));
    assert_ne!(a.ticket.program, b.ticket.program);
    table.answer(a, &calls("a"));
    table.answer(b, &calls("b"));
    for (id, asked) in [("b", b), ("a", a)] {
        let next = table.ask(&[user("u"), calls(id), result(id)]);
        assert_eq!(
            (next.ticket.program, next.by),
            (asked.ticket.program, Match::Reply)
        );
    }
}

#[test]
fn twins_with_equal_replies_are_served_longest_idle_first_and_never_joined() {
    let mut table = table(10);
    let [a, b] = [(); 2].map(|()| table.ask(&[user("u")]));
    for asked in [b, a] {
        table.answer(asked, &says("hi"));
    }
    let [first, second] = [(); 2].map(|()| table.ask(&[user("u"), says("hi"), user("v")]));
    assert_eq!(
        (first.ticket.program, first.by),
        (b.ticket.program, Match::Twins)
    );
    assert_eq!(
        (second.ticket.program, second.by),
        (a.ticket.program, Match::Reply)
    );
    assert_eq!(table.infer.len(), 2);
}

#[test]
fn twins_with_equal_replies_are_told_apart_by_their_seeds() {
    let mut table = table(10);
    let seeds = ["1", "2", "3"];
    let twins = seeds.map(|seed| table.ask_with_seed(seed, &[user("u")]));
    for twin in twins {
        table.answer(twin, &says("hi"));
    }
    let history = [user("u"), says("hi"), user("v")];
    for (seed, twin) in seeds.into_iter().zip(twins).rev().take(2) {
        let next = table.ask_with_seed(seed, &history);
        assert_eq!(
            (next.ticket.program, next.by),
            (twin.ticket.program, Match::Seed)
        );
    }
    // The last one has no twin left, and a seed of its own for every request.
    let next = table.ask_with_seed("9", &history);
    assert_eq!(next.ticket.program, twins[0].ticket.program);
    assert_eq!(next.by, Match::Reply);
}

#[test]
fn without_a_seed_in_common_the_twin_that_is_idle_longest_goes_on() {
    for seed in ["null", "7"] {
        let mut table = table(10);
        let twins = [(); 2].map(|()| table.ask_with_seed("null", &[user("u")]));
        for twin in twins {
            table.answer(twin, &says("hi"));
        }
        let next = table.ask_with_seed(seed, &[user("u"), says("hi"), user("v")]);
        assert_eq!(
            (next.ticket.program, next.by),
            (twins[0].ticket.program, Match::Twins)
        );
    }
}

#[test]
fn of_very_many_twins_only_the_longest_idle_are_looked_at() {
    let by = |twins: usize| {
        let mut table = table(1000);
        table.infer.limits.idle = Duration::from_secs(3600);
        let asked: Vec<_> = (0..twins)
            .map(|seed| table.ask_with_seed(&seed.to_string(), &[user("u")]))
            .collect();
        for twin in asked {
            table.answer(twin, &says("hi"));
        }
        let youngest = (twins - 1).to_string();
        table
            .ask_with_seed(&youngest, &[user("u"), says("hi"), user("v")])
            .by
    };
    assert_eq!(by(MAX_TWINS), Match::Seed);
    assert_eq!(by(MAX_TWINS + 1), Match::Twins);
}

#[test]
fn a_released_program_is_forgotten_and_its_running_step_changes_nothing() {
    let mut table = table(10);
    let asked = table.ask(&[user("u")]);
    let name = asked.ticket.program.to_string();
    assert_eq!(InferredId::named(&name), Some(asked.ticket.program));
    assert!(table.infer.release(asked.ticket.program));
    assert!(!table.infer.release(asked.ticket.program));
    assert_eq!(table.answer(asked, &says("hi")), [None; 2]);
    assert!(table.infer.is_empty() && table.infer.index.is_empty());
    let history = [user("u"), says("hi"), user("v")];
    assert_eq!(table.ask(&history).by, Match::New);
    for other in [
        "mine",
        "inferred:",
        "inferred:1",
        "inferred:+123456789abcdef",
    ] {
        assert_eq!(InferredId::named(other), None, "{other}");
    }
}

#[test]
fn two_continuations_of_one_history_are_two_programs() {
    let mut table = table(10);
    let asked = table.ask(&[user("u")]);
    table.answer(asked, &says("hi"));
    let [one, other] = ["v", "w"].map(|text| table.ask(&[user("u"), says("hi"), user(text)]));
    assert_eq!(one.ticket.program, asked.ticket.program);
    assert_eq!(other.by, Match::New);
    table.answer(one, &says("one"));
    table.answer(other, &says("other"));
    for (text, reply, before) in [("w", "other", other), ("v", "one", one)] {
        let history = [user("u"), says("hi"), user(text), says(reply), user("x")];
        assert_eq!(table.ask(&history).ticket.program, before.ticket.program);
    }
}

#[test]
fn a_request_that_was_not_answered_is_retried_by_the_same_program() {
    let mut table = table(10);
    let first = table.ask(&[user("u")]);
    table.fail(first);
    let again = table.ask(&[user("u")]);
    assert_eq!(
        (again.ticket.program, again.by),
        (first.ticket.program, Match::Retry)
    );
    // Answered, the same first request is another program's.
    table.answer(again, &says("hi"));
    assert_eq!(table.ask(&[user("u")]).by, Match::New);
}

#[test]
fn asking_again_in_the_middle_is_the_same_program_unless_a_twin_is_due() {
    let mut table = table(10);
    let second = [user("u"), says("hi"), user("v")];
    let [a, b] = [(); 2].map(|()| table.ask(&[user("u")]));
    table.answer(a, &says("hi"));
    table.answer(b, &says("hi"));
    let step = table.ask(&second);
    table.answer(step, &says("x"));
    let twin = table.ask(&second);
    assert_eq!(twin.ticket.program, b.ticket.program);
    let again = table.ask(&second);
    assert_eq!(
        (again.ticket.program, again.by),
        (a.ticket.program, Match::Repeat)
    );
}

#[test]
fn an_expert_asked_with_the_same_history_belongs_to_the_program_that_called_it() {
    let mut table = table(10);
    let agent = table.ask(&[user("u")]);
    table.answer(agent, &calls("expert"));
    let expert = table.ask_model("expert", &[user("u")]).unwrap();
    assert_eq!(
        (expert.ticket.program, expert.by),
        (agent.ticket.program, Match::Repeat)
    );
    table.answer(expert, &says("advice"));
    // The client gives the call an id of its own.
    let next = table.ask(&[user("u"), calls("own"), result("own")]);
    assert_eq!(
        (next.ticket.program, next.by),
        (agent.ticket.program, Match::History)
    );
}

#[test]
fn of_very_many_programs_with_one_history_only_some_are_looked_at_for_a_repetition() {
    let by = |others: usize| {
        let mut table = table(1000);
        table.infer.limits.idle = Duration::from_secs(3600);
        for _ in 0..others {
            let other = table.ask(&[user("u")]);
            table.answer(other, &says("hi"));
        }
        let agent = table.ask(&[user("u")]);
        table.answer(agent, &calls("expert"));
        table.ask_model("expert", &[user("u")]).unwrap().by
    };
    assert_eq!(by(MAX_REPEATS - 1), Match::Repeat);
    assert_eq!(by(MAX_REPEATS), Match::New);
}

#[test]
fn one_prompt_put_to_two_models_is_two_programs() {
    let mut table = table(10);
    let one = table.ask_model("a", &[user("u")]).unwrap();
    table.answer(one, &says("hi"));
    assert_eq!(table.ask_model("b", &[user("u")]).unwrap().by, Match::New);
}

#[test]
fn a_shared_beginning_that_no_reply_follows_is_no_history() {
    let mut table = table(10);
    let system = json!({"role": "system", "content": "s"});
    let warm_up = table.ask(std::slice::from_ref(&system));
    table.answer(warm_up, &says("ok"));
    assert_eq!(table.ask(&[system, user("u")]).by, Match::New);
}

#[test]
fn the_next_request_may_come_before_the_last_response_has_ended() {
    let mut table = table(10);
    let first = table.ask(&[user("u")]);
    let mut hasher = ReplyHasher::streamed();
    hasher.push(
        b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n",
    );
    table
        .infer
        .replied(table.now, first.ticket, hasher.digest().unwrap());
    let next = table.ask(&[user("u"), says("hi"), user("v")]);
    assert_eq!(next.ticket.program, first.ticket.program);
    // The end of the first request says nothing about the second, which still has no reply.
    table.fail(first);
    assert_eq!(
        table.ask(&[user("u"), says("hi"), user("v")]).by,
        Match::New
    );
}

#[test]
fn a_mark_ends_its_program_and_the_one_it_talked_to() {
    let mut table = table(10);
    let agent = table.ask(&[user("help")]);
    table.answer(agent, &says("done?"));
    let simulator = table.ask(&[user("hello"), says("help"), user("done?")]);
    let ended = table.answer(simulator, &says("yes ###STOP###"));
    let both = [simulator, agent].map(|asked| Some(asked.ticket.program));
    assert_eq!(ended, both);
    assert!(table.infer.is_empty());
}

#[test]
fn of_two_that_said_what_the_ended_one_heard_neither_ends() {
    let mut table = table(10);
    for text in ["help", "help me"] {
        let agent = table.ask(&[user(text)]);
        table.answer(agent, &says("done?"));
    }
    let simulator = table.ask(&[user("done?")]);
    let ended = table.answer(simulator, &says("###STOP###"));
    assert_eq!(ended, [Some(simulator.ticket.program), None]);
    assert_eq!(table.infer.len(), 2);
}

#[test]
fn an_idle_program_expires_and_its_next_request_is_a_new_one() {
    let mut table = table(10);
    let first = table.ask(&[user("u")]);
    table.answer(first, &says("hi"));
    let busy = table.ask(&[user("busy")]);
    table.now = table.now + IDLE + Duration::from_secs(1);
    let next = table.ask(&[user("u"), says("hi"), user("v")]);
    assert_eq!(next.by, Match::New);
    assert_ne!(next.ticket.program, first.ticket.program);
    // A program with a request in flight does not expire.
    table.answer(busy, &says("hi"));
    let history = [user("busy"), says("hi"), user("v")];
    assert_eq!(table.ask(&history).ticket.program, busy.ticket.program);
}

#[test]
fn a_newcomer_takes_the_place_of_the_longest_idle() {
    let mut table = table(2);
    let [a, b] = ["a", "b"].map(|text| table.ask(&[user(text)]));
    assert_eq!(table.ask_model("m", &[user("c")]), None, "both are busy");
    table.answer(a, &says("hi"));
    table.answer(b, &says("hi"));
    assert_eq!(table.ask(&[user("c")]).by, Match::New);
    assert_eq!(table.infer.len(), 2);
    let next = table.ask(&[user("b"), says("hi"), user("v")]);
    assert_eq!(next.ticket.program, b.ticket.program);
    // The forgotten program's late messages change nothing.
    table.fail(a);
    assert_eq!(table.infer.len(), 2);
}

#[test]
fn a_step_that_adds_more_messages_than_are_looked_at_is_a_new_program() {
    let grown = |added: usize| {
        let mut table = table(10);
        let first = table.ask(&[user("u")]);
        table.answer(first, &says("hi"));
        let mut history = vec![user("u"), says("hi")];
        history.resize(1 + added, user("v"));
        table.ask(&history).by
    };
    assert_eq!(grown(MAX_NEW_MESSAGES), Match::Reply);
    assert_eq!(grown(MAX_NEW_MESSAGES + 1), Match::New);
}

#[test]
fn the_index_is_empty_when_no_program_is_idle() {
    let mut table = table(10);
    let first = table.ask(&[user("u")]);
    assert!(table.infer.index.is_empty());
    table.answer(first, &says("hi"));
    assert_eq!(table.infer.index.len(), 4);
    table.ask(&[user("u"), says("hi"), user("v")]);
    assert!(table.infer.index.is_empty());
}

#[test]
fn the_same_traffic_gives_the_same_names() {
    let names = || {
        let mut table = table(10);
        [(); 2].map(|()| table.ask(&[user("u")]).ticket.program.to_string())
    };
    let [a, b] = names();
    assert_eq!([a.clone(), b.clone()], names());
    assert_ne!(a, b);
    assert!(a.starts_with("inferred:") && a.len() == 25);
}

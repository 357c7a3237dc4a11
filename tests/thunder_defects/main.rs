//! Each defect of the two reference schedulers: the old behaviour in `compat`, the mended one in `fixed`.
//!
//! Every policy runs inside the assertions of its laws, so that `compat` shows what is left of a defect that would
//! break one. Where the two modes do not differ, the test says why.
//!
//! ThunderReact's reference router, in `reacting`:
//!
//! | defect | test |
//! |---|---|
//! | Foreign budget | `the_size_of_the_cache_is_the_backends_own` |
//! | Abandoned requests | `a_cancelled_request_is_never_sent_and_takes_no_turn` |
//! | Stranded by a release | `a_release_does_not_strand_what_waits` |
//! | In flight as a flag | `a_program_pauses_after_its_last_request_in_flight` |
//! | Retries as steps | `tries_of_one_step_are_one_step` |
//! | Streams over at their start | `a_stream_runs_until_its_end` |
//! | Dead band | `the_band_between_the_triggers_ends` |
//! | Idle backend | `an_idle_backend_holds_nothing` |
//! | Turns for nobody | `room_is_given_to_those_who_wait` |
//! | Paused twin | `a_backend_that_returns_is_as_good_as_another` |
//! | Ghosts | `programs_that_never_return_delay_nobody` |
//! | Stale usage | `an_old_sample_says_nothing` |
//! | Last step | `a_last_step_waits_at_the_head` |
//!
//! ThunderAgent's original, in `counting`:
//!
//! | defect | test |
//! |---|---|
//! | Broken sweep | `one_sweep_resumes_and_relieves` |
//! | Over-marking | `only_as_many_running_programs_are_marked_as_needed` |
//! | Phantoms | `a_failed_request_is_over` |
//! | Nothing is forgotten | `programs_that_never_return_do_not_add_up` |
//! | Idle for ever | `an_idle_context_fades` |
//! | Starved giants | `a_large_program_is_not_passed_for_ever` |
//! | Dead home | `a_program_survives_its_backend` |
//! | Abandoned requests | `a_cancelled_request_is_never_sent_and_takes_no_room` |
//! | Released while held | `a_release_leaves_what_waits_in_the_books` |
//! | Two at once | `a_program_is_idle_after_its_last_request` |
//! | Queue jumping | `a_second_request_does_not_jump_the_queue` |
//! | Zero capacity | `a_capacity_of_zero_is_an_unknown_one` |
//! | Capacity read once | `a_capacity_that_is_told_later_counts` |
//! | Books alone | `the_engine_itself_is_asked_before_a_mark` |
//! | Shared prefix | `a_shared_prefix_counts_once` |
//! | Marks for ever | `a_mark_ends_with_the_pressure` |
//! | Priority inversion | `a_waiting_request_goes_before_an_idle_program` |
//! | Stale size | `a_program_queues_by_what_it_asks_for` |
//! | Idle as new | `an_idle_program_is_never_taken_for_a_new_one` |
//! | Pooled room | `room_on_two_backends_is_not_one_room` |
//! | Lost locality | `a_resumed_program_goes_home` |
//! | Idle resumes | `an_idle_program_stays_where_it_is` |
//! | Blocked by the idle | `a_new_program_does_not_wait_behind_idle_ones` |
//! | Late sweeps | `room_is_used_when_it_appears` |
//! | Relieved while down | `a_backend_that_is_down_holds_nothing` |
//! | Lost count | `a_count_is_not_replaced_by_a_smaller_estimate` |
//! | Wall clock | `no_context_weighs_more_than_itself` |
//! | Blind spreading | `programs_are_spread_by_what_they_occupy` |
//!
//! What their HTTP layers and scrapes do wrong is no decision of a policy, and so in neither mode; the gate's own
//! tests show what it does instead:
//!
//! | defect | file | test |
//! |---|---|---|
//! | Abandoned requests are sent | `tests/it/cancel.rs` | `a_client_that_leaves_while_held_never_reaches_the_backend` |
//! | Nothing is forgotten: by time | `src/proxy/sequencer/mod.rs` | `an_idle_program_expires_and_a_busy_one_does_not` |
//! | Nothing is forgotten: by number | `src/proxy/sequencer/mod.rs` | `a_full_table_forgets_the_longest_idle_program_and_never_a_busy_one` |
//! | A gauge's old name is not read | `src/telemetry/scrape.rs` | `the_old_names_are_read` |
//! | A nested `is_last_step` overrides the outer one | `src/proxy/request.rs` | `the_last_step_is_known_from_any_place_that_says_so` |
//! | `content-encoding` of a decoded body; encoded answers corrupted; client's key dropped | `tests/it/passthrough.rs` | `random_json_headers_query_and_status_pass_untouched_both_ways` |
//! | An error without a reason | `tests/it/errors.rs` | `a_backend_that_begins_to_refuse_gives_an_error` |
//! | One hung scrape delays all | `tests/it/metrics.rs` | `a_scrape_that_hangs_does_not_keep_another_backend_waiting` |
//! | One failed scrape is an outage | `tests/it/metrics.rs` | `a_backend_is_down_only_after_several_failed_scrapes_in_a_row` |
//! | One fixed timeout for everything | `tests/it/errors.rs` | `a_backend_that_never_answers_is_given_up` |
//! | No bound on what waits | `tests/it/hold.rs` | `a_request_past_the_bound_of_held_ones_is_told_to_come_back_later` |
//! | Frames that end in CRLF are never split | `src/telemetry/sse.rs` | `each_line_end_style_gives_the_same_frames` |
//! | A usage frame nobody asked for | `tests/it/streaming.rs` | `usage_is_asked_for_in_a_stream_and_hidden_from_a_client_that_did_not_ask` |
//! | Open to the network | `tests/it/control.rs` | `a_gate_listens_to_its_own_machine_unless_told_otherwise` |
//! | Anyone may steer | `tests/it/control.rs` | `only_who_knows_the_token_switches_policies` |
//! | No bound on a body | `tests/it/errors.rs` | `a_body_over_the_limit_is_refused_and_one_at_the_limit_passes` |
//! | A clock that runs back | `tests/policy_laws.rs` | `a_caller_whose_clock_runs_backwards_is_caught` |

mod counting;
mod reacting;

use std::collections::BTreeMap;

use kvgate::policy::{
    Arrival, BackendId, BackendSample, Checked, Config, Decision, Decisions, Event, Outcome,
    Policy, ProgramId, Ratio, RequestId, SharedPrefix, Time, Tokens, Usage, settings, thunderagent,
    thunderreact,
};

/// The rest of the gate, as a policy sees it.
struct Gate {
    policy: Checked,
    now: Time,
    out: Decisions,
    /// What each backend's scrapes say, as long as they succeed.
    usages: BTreeMap<u16, f64>,
    /// Requests that were admitted, in order, with their backends.
    sent: Vec<(u32, u16)>,
}

impl Gate {
    fn new(config: &Config) -> Self {
        Self {
            policy: Checked::new(config.build_unchecked()),
            now: Time::ZERO,
            out: Decisions::new(),
            usages: BTreeMap::new(),
            sent: Vec::new(),
        }
    }

    fn tell(&mut self, event: &Event) -> &mut Self {
        self.policy.handle(self.now, event, &mut self.out);
        for decision in self.out.drain() {
            if let Decision::Admit {
                request, backend, ..
            } = decision
            {
                self.sent.push((request.0, backend.0));
            }
        }
        self
    }

    fn up(&mut self, backend: u16, capacity: impl Into<Option<u64>>) -> &mut Self {
        self.tell(&Event::BackendUp {
            backend: BackendId(backend),
            kv_capacity: capacity.into().map(Tokens),
        })
    }

    fn down(&mut self, backend: u16) -> &mut Self {
        self.tell(&Event::BackendDown {
            backend: BackendId(backend),
        })
    }

    fn usage(&mut self, backend: u16, usage: f64) -> &mut Self {
        self.usages.insert(backend, usage);
        self.tell(&Event::Sample(BackendSample {
            backend: BackendId(backend),
            kv_usage: Ratio::new(usage),
            running: 0,
            waiting: 0,
            preemptions: 0,
            prefix_hits: 0,
            prefix_queries: 0,
        }))
    }

    /// Lets `secs` seconds pass, with ticks as the policy asks and a scrape before each.
    fn pass(&mut self, secs: f64) -> &mut Self {
        let until = self.now + settings::duration(secs);
        while let Some(wakeup) = self.policy.next_wakeup()
            && wakeup.at <= until
        {
            self.now = wakeup.at;
            for (backend, usage) in self.usages.clone() {
                self.usage(backend, usage);
            }
            self.tell(&Event::Tick);
        }
        self.now = until;
        self
    }

    fn arrive(&mut self, request: u32, program: u32, prompt: u64) -> &mut Self {
        self.arrive_as(request, program, prompt, |_| ())
    }

    fn arrive_as(
        &mut self,
        request: u32,
        program: u32,
        prompt: u64,
        change: impl FnOnce(&mut Arrival),
    ) -> &mut Self {
        let mut arrival = arrival(request, program, prompt);
        change(&mut arrival);
        self.tell(&Event::Arrive(arrival))
    }

    /// The request is answered, and leaves its program with this context.
    fn answer(&mut self, request: u32, context: u64) -> &mut Self {
        self.end(request, Outcome::ToolCalls, Some(context))
    }

    fn end(&mut self, request: u32, outcome: Outcome, context: Option<u64>) -> &mut Self {
        self.tell(&end(request, outcome, context))
    }

    fn release(&mut self, program: u32) -> &mut Self {
        self.tell(&Event::Release {
            program: ProgramId(program),
        })
    }

    /// The program makes `steps` steps and is idle then, with this context.
    fn live(&mut self, program: u32, steps: u32, context: u64) -> &mut Self {
        for _ in 0..steps {
            self.arrive(1_000 + program, program, context);
            self.answer(1_000 + program, context);
        }
        self.sent.clear();
        self
    }

    fn sent(&mut self) -> Vec<u32> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().map(|(request, _)| request).collect()
    }

    /// Where the request went, if it was sent.
    fn place(&self, request: u32) -> Option<u16> {
        let place = self.sent.iter().find(|(sent, _)| *sent == request);
        place.map(|(_, backend)| *backend)
    }

    fn is_paused(&self, program: u32) -> bool {
        self.policy.program(ProgramId(program)).paused
    }

    fn is_marked(&self, program: u32) -> bool {
        self.policy.program(ProgramId(program)).pause_requested
    }
}

fn arrival(request: u32, program: u32, prompt: u64) -> Arrival {
    Arrival {
        request: RequestId(request),
        program: Some(ProgramId(program)),
        name_hash: 0,
        prompt: Tokens(prompt),
        shared: None,
        last_step: false,
    }
}

fn end(request: u32, outcome: Outcome, context: Option<u64>) -> Event {
    Event::Finish {
        request: RequestId(request),
        outcome,
        usage: context.map(|context| Usage {
            prompt: Tokens(context),
            cached: None,
            output: Tokens::ZERO,
        }),
    }
}

#[test]
fn every_test_that_the_tables_name_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let here =
        read("tests/thunder_defects/reacting.rs") + &read("tests/thunder_defects/counting.rs");
    let mut rows = 0;
    for row in include_str!("main.rs").lines() {
        let Some(cells) = row
            .strip_prefix("//! | ")
            .and_then(|r| r.strip_suffix("` |"))
        else {
            continue;
        };
        let (rest, test) = cells.rsplit_once("| `").unwrap();
        let file = rest.rsplit_once("| `").map(|(_, file)| file);
        let source = file.map_or_else(|| here.clone(), |file| read(file.trim_end_matches("` ")));
        assert!(source.contains(&format!("fn {test}()")), "{row}");
        rows += 1;
    }
    assert!(rows > 50, "{rows} rows");
}

#[test]
fn the_modes_are_settings() {
    let parse = serde_json::from_str::<thunderagent::Config>;
    assert_eq!(
        parse(r#"{"mode": "compat"}"#).unwrap().mode,
        thunderagent::Mode::Compat
    );
    assert_eq!(parse("{}").unwrap().mode, thunderagent::Mode::Fixed);
    let parse = serde_json::from_str::<thunderreact::Config>;
    assert_eq!(
        parse(r#"{"mode": "compat"}"#).unwrap().mode,
        thunderreact::Mode::Compat
    );
    assert!(parse(r#"{"mode": "best"}"#).is_err());
}

//! Each scheduling defect of the two reference schedulers: the old behaviour in `compat`, the mended one in `fixed`.
//!
//! What an HTTP layer did wrong is not here: the gate has another one. Every policy runs inside the assertions of
//! its laws.

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

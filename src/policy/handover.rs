//! What a policy is told when it takes over from another: what runs, what is idle, what waits.
//!
//! It has seen nothing yet, so it is told the past in order, each thing at the time at which it happened: backends,
//! the requests that run, and for each idle program its last step as if that had run here. From that alone it decides
//! nothing. Then, at the present, it is told what the backends report, and asked about every request that waits, the
//! oldest first and with the time at which that arrived. So nothing runs uncounted, and no hold begins anew.

use super::roster::Backend;
use super::{Adoption, Arrival, BackendId, Event, GapKind, Outcome, ProgramId, Time, Usage};

/// A request that runs.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// The request and where it runs.
    pub adoption: Adoption,
    /// When it was admitted.
    pub admitted: Time,
    /// When its first token passed, if it has.
    pub first_token: Option<Time>,
}

/// A program of which nothing runs, and whose context may still be where it ran last.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Its last request and where that ran. The request's id is anybody's that is free.
    pub adoption: Adoption,
    /// When that ended.
    pub since: Time,
    /// How.
    pub outcome: Outcome,
    /// What the backend reported of it.
    pub usage: Option<Usage>,
    /// What the program does meanwhile, if that was told.
    pub gap: Option<GapKind>,
}

/// Everything that is to be told.
#[derive(Clone, Debug, Default)]
pub struct Handover {
    /// The backends, by id. One that is down is told of only if something runs there.
    pub backends: Vec<Backend>,
    /// What runs.
    pub running: Vec<Running>,
    /// What is idle.
    pub idle: Vec<Idle>,
    /// What waits, the oldest first: when it arrived, and as what.
    pub held: Vec<(Time, Arrival)>,
}

impl Handover {
    /// What happened until now, in order, each with its time; none is later than `now`. Nothing is to be decided yet.
    pub fn past(&self, now: Time) -> Vec<(Time, Event)> {
        let mut past = Vec::new();
        for running in &self.running {
            past.push((running.admitted, Event::Adopt(running.adoption)));
            let request = running.adoption.arrival.request;
            past.extend(
                running
                    .first_token
                    .map(|at| (at, Event::FirstToken { request })),
            );
        }
        let is_up = |id: BackendId| self.backends.get(id.index()).is_some_and(|b| b.up);
        for idle in self.idle.iter().filter(|idle| is_up(idle.adoption.backend)) {
            past.extend(idle.events().map(|event| (idle.since, event)));
        }
        // Stable: what has one time stays in the order in which it was put down.
        past.sort_by_key(|(at, _)| *at);
        let first = past.first().map_or(now, |(at, _)| *at);
        let up = self.known().map(|(backend, known)| {
            let kv_capacity = known.kv_capacity;
            (
                first,
                Event::BackendUp {
                    backend,
                    kv_capacity,
                },
            )
        });
        up.chain(past).collect()
    }

    /// How things are now, and what is to be decided.
    pub fn present(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (backend, known) in self.known() {
            if known.up {
                events.extend(known.sample.map(Event::Sample));
            } else {
                events.push(Event::BackendDown { backend });
            }
        }
        let held = self.held.iter();
        events.extend(held.map(|&(since, arrival)| Event::Rearrive { arrival, since }));
        events
    }

    /// Backends that are up, or that something runs on.
    fn known(&self) -> impl Iterator<Item = (BackendId, &Backend)> {
        let all = (0..=u16::MAX).map(BackendId).zip(&self.backends);
        all.filter(|(id, backend)| {
            let mut running = self.running.iter();
            backend.up || running.any(|running| running.adoption.backend == *id)
        })
    }

    /// The programs that are told of.
    pub fn programs(&self) -> impl Iterator<Item = ProgramId> {
        let running = self.running.iter().map(|running| running.adoption.arrival);
        let idle = self.idle.iter().map(|idle| idle.adoption.arrival);
        running.chain(idle).filter_map(|arrival| arrival.program)
    }
}

impl Idle {
    /// Its last step, as if it had begun when it ended.
    fn events(&self) -> impl Iterator<Item = Event> {
        let request = self.adoption.arrival.request;
        let finish = Event::Finish {
            request,
            outcome: self.outcome,
            // What was found in the cache then says nothing of this policy.
            usage: self.usage.map(|usage| Usage {
                cached: None,
                ..usage
            }),
        };
        let program = self.adoption.arrival.program;
        let gap = self.gap.zip(program);
        let gap = gap.map(|(kind, program)| Event::ToolGap { program, kind });
        [Event::Adopt(self.adoption), finish].into_iter().chain(gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        BackendSample, Config, Decision, Decisions, Policy, PolicySnapshot, RequestId, Tokens,
        concurrency,
    };

    const B: BackendId = BackendId(0);
    const MS: fn(u64) -> Time = Time::from_millis;
    const USAGE: Usage = Usage {
        prompt: Tokens(1_000),
        cached: None,
        output: Tokens(50),
    };

    fn arrival(request: u32, program: u32) -> Arrival {
        Arrival {
            request: RequestId(request),
            program: Some(ProgramId(program)),
            name_hash: u64::from(program),
            prompt: Tokens(1_000),
            shared: None,
            last_step: false,
        }
    }

    fn tell(policy: &mut dyn Policy, at: Time, event: &Event) -> Vec<Decision> {
        let mut out = Decisions::new();
        policy.handle(at, event, &mut out);
        out.as_slice().to_vec()
    }

    fn up() -> Event {
        Event::BackendUp {
            backend: B,
            kv_capacity: Some(Tokens(6_000)),
        }
    }

    /// Every policy, with a cap that three programs reach.
    fn policies() -> impl Iterator<Item = Config> {
        let capped = concurrency::Config {
            cap: 3,
            ..concurrency::Config::default()
        };
        let others = Config::NAMES
            .into_iter()
            .filter(|name| *name != concurrency::NAME);
        let others = others.map(|name| Config::by_name(name).unwrap());
        others.chain([Config::Concurrency(capped)])
    }

    /// Two programs run; a third has run, and calls a tool.
    fn lived(config: &Config) -> Box<dyn Policy> {
        let mut policy = config.build();
        tell(policy.as_mut(), MS(0), &up());
        for id in 0..3 {
            let admitted = tell(policy.as_mut(), MS(0), &Event::Arrive(arrival(id, id)));
            assert!(matches!(admitted[..], [Decision::Admit { .. }]));
        }
        let finish = Event::Finish {
            request: RequestId(2),
            outcome: Outcome::Stop,
            usage: Some(USAGE),
        };
        tell(policy.as_mut(), MS(0), &finish);
        let gap = Event::ToolGap {
            program: ProgramId(2),
            kind: GapKind::UserTurn,
        };
        tell(policy.as_mut(), MS(0), &gap);
        policy
    }

    /// The same, as another policy is told of it.
    fn handover() -> Handover {
        let adoption = |id| Adoption {
            arrival: arrival(id, id),
            backend: B,
            steps: 0,
        };
        let running = |id| Running {
            adoption: adoption(id),
            admitted: MS(0),
            first_token: None,
        };
        Handover {
            backends: vec![Backend {
                up: true,
                kv_capacity: Some(Tokens(6_000)),
                ..Backend::default()
            }],
            running: vec![running(0), running(1)],
            idle: vec![Idle {
                adoption: adoption(2),
                since: MS(0),
                outcome: Outcome::Stop,
                usage: Some(USAGE),
                gap: Some(GapKind::UserTurn),
            }],
            held: Vec::new(),
        }
    }

    fn take_over(config: &Config, now: Time, handover: &Handover) -> Box<dyn Policy> {
        let mut policy = config.build();
        for (at, event) in handover.past(now) {
            assert!(at <= now);
            assert_eq!(tell(policy.as_mut(), at, &event), [], "{event:?}");
        }
        for event in handover.present() {
            tell(policy.as_mut(), now, &event);
        }
        policy
    }

    fn counts(snapshot: &PolicySnapshot) -> (u32, u32, u32, Tokens) {
        let PolicySnapshot {
            held,
            programs,
            paused,
            resident,
            ..
        } = *snapshot;
        (held, programs, paused, resident)
    }

    #[test]
    fn who_takes_over_counts_and_decides_as_who_was_there_all_along() {
        for config in policies() {
            let name = config.name();
            let (mut lived, mut told) = (lived(&config), take_over(&config, MS(10), &handover()));
            assert_eq!(
                counts(&told.snapshot()),
                counts(&lived.snapshot()),
                "{name}"
            );
            let end = |id| Event::Finish {
                request: RequestId(id),
                outcome: Outcome::Stop,
                usage: Some(USAGE),
            };
            let events = [
                Event::Arrive(arrival(3, 3)),
                Event::Arrive(arrival(4, 2)),
                end(0),
                end(4),
                end(1),
                Event::Release {
                    program: ProgramId(2),
                },
            ];
            for (event, at) in events.into_iter().zip(20..) {
                let before = tell(lived.as_mut(), MS(at), &event);
                let now = tell(told.as_mut(), MS(at), &event);
                assert_eq!(now, before, "{name}: {event:?}");
            }
            assert_eq!(
                counts(&told.snapshot()),
                counts(&lived.snapshot()),
                "{name}"
            );
        }
    }

    #[test]
    fn a_program_beyond_the_cap_waits_for_those_that_another_policy_admitted() {
        let config = Config::Concurrency(concurrency::Config {
            cap: 1,
            ..concurrency::Config::default()
        });
        let mut policy = take_over(&config, MS(10), &handover());
        let decided = tell(policy.as_mut(), MS(11), &Event::Arrive(arrival(3, 3)));
        assert!(
            matches!(decided[..], [Decision::Hold { .. }]),
            "{decided:?}"
        );
    }

    #[test]
    fn a_hold_ends_when_it_would_have_ended() {
        let config = Config::Concurrency(concurrency::Config {
            cap: 1,
            hold_timeout_s: 5.0,
            ..concurrency::Config::default()
        });
        let handover = Handover {
            held: vec![(MS(1_000), arrival(3, 3))],
            ..handover()
        };
        let mut policy = take_over(&config, MS(5_900), &handover);
        assert_eq!(policy.snapshot().held, 1);
        assert_eq!(
            policy.next_wakeup().map(|wakeup| wakeup.at),
            Some(MS(6_000))
        );
        let decided = tell(policy.as_mut(), MS(6_000), &Event::Tick);
        assert!(
            matches!(decided[..], [Decision::Admit { .. }]),
            "{decided:?}"
        );
    }

    #[test]
    fn a_backend_that_went_down_is_told_of_only_while_something_runs_there() {
        let mut handover = handover();
        handover.backends[0].up = false;
        handover.backends[0].sample = Some(BackendSample {
            backend: B,
            kv_usage: None,
            running: 0,
            waiting: 0,
            preemptions: 0,
            prefix_hits: 0,
            prefix_queries: 0,
        });
        let past = handover.past(MS(10));
        assert_eq!(past.len(), 3, "up, and what runs: {past:?}");
        assert_eq!(handover.present(), [Event::BackendDown { backend: B }]);
        handover.running.clear();
        assert_eq!(handover.past(MS(10)), []);
        assert_eq!(handover.present(), []);
    }

    #[test]
    fn the_past_is_told_in_order_whoever_is_named_first() {
        let mut handover = handover();
        handover.running[0].admitted = MS(7);
        handover.running[0].first_token = Some(MS(9));
        handover.running[1].admitted = MS(3);
        handover.idle[0].since = MS(5);
        let past = handover.past(MS(10));
        let times: Vec<_> = past
            .iter()
            .map(|(at, _)| at.as_nanos() / 1_000_000)
            .collect();
        assert_eq!(times, [3, 3, 5, 5, 5, 7, 9]);
    }
}

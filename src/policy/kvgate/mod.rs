//! kvgate's own policy: room in the cache is rented. An idle program's context is kept while the prefill that this
//! will probably save is worth more than what running requests would make of the room.
//!
//! Idea: the gate follows what the engine's cache holds, measures what prefill and room are worth and how soon each
//! kind of gap ends, and admits a request when its context is there, or when there is room for it beside what is
//! worth keeping and what is going to grow. Nothing else is held back, and nothing for ever. The maths, the bound on
//! every wait and the measurements are in this folder's README.md.
//! Worse when the cache holds only a handful of programs: smallest first packs them better.
//!
//! Here: programs, requests and who goes next. `cache`: one backend, and what is worth keeping there. `shadow`,
//! `lru`: what its cache holds. `capacity`: how large that cache is. `price`: what prefill and room are worth.
//! `returns`: how soon a program returns. `strangers`: when ids are missing. `groups`: what programs with one prefix have in common.

mod admission;
mod cache;
mod capacity;
mod config;
mod groups;
mod lru;
mod price;
mod returns;
mod runs;
mod shadow;
mod strangers;
#[cfg(test)]
mod tests;

pub use config::Config;

use std::time::Duration;

use super::roster::Roster;
use super::slots::Slots;
use super::waiting::Waiting;
use super::{
    Arrival, BackendId, BackendSample, Decisions, Event, GapKind, HoldReason, Outcome, Policy,
    PolicySnapshot, ProgramId, ProgramView, RejectReason, RequestId, Time, Tokens, Usage, Wakeup,
    settings,
};
use admission::{Key, Line};
use cache::Cache;
use groups::Groups;
use lru::Handle;
use returns::{NO_GROUP, Returns};
use runs::Run;
use strangers::Strangers;

/// The name in the registry.
pub const NAME: &str = "kvgate";

/// How often a held request is thought about when nothing happens: return rates change with time alone.
const RETHINK: Duration = Duration::from_millis(100);

/// What is remembered of a program.
#[derive(Clone, Copy, Debug)]
struct Program {
    /// Where its last request ran.
    home: Option<BackendId>,
    /// Its context there, while it is idle.
    segment: Option<Handle>,
    /// Programs are numbered as they come.
    rank: u64,
    /// When it last got its room.
    resident_since: Time,
    /// When its last step ended; before the first, when it came.
    served: Time,
    /// The gap it is in: when it began, and its class.
    gap: Option<(Time, u16)>,
    /// How long its last step ran, in seconds.
    run_s: f32,
    group: u16,
    running: u16,
    /// Its last prompt, and the private part of it, tokens.
    prompt: u32,
    private: u32,
}

/// The policy's state.
#[derive(Debug)]
pub struct Kvgate {
    config: Config,
    roster: Roster,
    caches: Vec<Cache>,
    programs: Slots<Program>,
    runs: Slots<Run>,
    groups: Groups,
    returns: Returns,
    waiting: Waiting<Key>,
    next_rank: u64,
    strangers: Strangers,
    rethink: Option<Time>,
    timed_out: u64,
    untracked: u64,
    moved: u64,
}

impl Kvgate {
    /// A policy that knows no backend and no program yet.
    pub fn new(config: Config) -> Self {
        let hold = settings::duration(config.hold_timeout_s);
        Self {
            roster: Roster::new(),
            caches: Vec::new(),
            programs: Slots::new(),
            runs: Slots::new(),
            groups: Groups::new(),
            returns: Returns::new(),
            waiting: Waiting::new(config.max_held, hold),
            next_rank: 0,
            strangers: Strangers::new(),
            rethink: None,
            timed_out: 0,
            untracked: 0,
            moved: 0,
            config,
        }
    }

    /// Tells when the program, which goes idle now, returns: from then on that is what it is judged by, not its class of
    /// gap. What knowing the future would be worth; never set by the gate.
    pub fn foretell(&mut self, program: ProgramId, returns_at: Time) {
        self.returns.foretell(program, returns_at);
    }

    /// Learns every gap as `factor` times as long as it was, `factor` above 0. What wrong gaps would cost; never set by
    /// the gate.
    pub const fn believe_gaps(&mut self, factor: f64) {
        self.returns.believe(factor);
    }

    fn arrive(&mut self, now: Time, since: Time, mut arrival: Arrival, out: &mut Decisions) {
        let Some(least) = self.roster.least_in_flight() else {
            return out.reject(arrival.request, RejectReason::NoBackend);
        };
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        self.strangers.observe(tracked.is_none());
        let Some(id) = tracked else {
            self.untracked += u64::from(arrival.program.is_some());
            arrival.program = None;
            return self.start(now, &arrival, least, out);
        };
        let line = self.meet((now, since), id, &arrival);
        let key = self.key(line, id, since, &arrival);
        self.waiting.push(since, key, arrival);
        match line {
            Line::Warm(home) => self.fill_warm(now, home, out),
            Line::Cold => self.fill_cold(now, out),
        }
        if self.waiting.get(arrival.request).is_none() {
            return;
        }
        if self.waiting.is_over() {
            self.waiting.remove(arrival.request);
            return out.reject(arrival.request, RejectReason::QueueFull);
        }
        self.mark_wanted(id, true);
        let first = self
            .head(line)
            .is_some_and(|h| h.arrival.request == arrival.request);
        let reason = if first {
            HoldReason::NoRoom
        } else {
            HoldReason::BehindOlder
        };
        out.hold(arrival.request, reason);
    }

    /// A request runs that another policy admitted: it counts as if it had started here.
    fn adopt(&mut self, now: Time, mut arrival: Arrival, backend: BackendId) {
        arrival.program = arrival.program.filter(|id| id.0 < self.config.max_programs);
        if let Some(id) = arrival.program {
            self.meet((now, now), id, &arrival);
        }
        self.start(now, &arrival, backend, &mut Decisions::new());
    }

    /// Notes a program's arrival at `since`, and says which line it stands in.
    fn meet(&mut self, (now, since): (Time, Time), id: ProgramId, arrival: &Arrival) -> Line {
        let Some(known) = self.programs.get(id.index()).copied() else {
            self.enter(now, id, arrival);
            return Line::Cold;
        };
        if let Some((began, class)) = known.gap {
            let gap = since.since(began);
            self.returns.observe(class, gap);
            let warm = known
                .home
                .is_some_and(|home| self.has_context(home, &known));
            let group = self.groups.get_mut(known.group);
            group.observe_return(warm);
            group.observe_cycle(f64::from(known.run_s) + gap.as_secs_f64());
            group.observe_growth(arrival.prompt.as_f64() - f64::from(known.prompt));
            if let Some(program) = self.programs.get_mut(id.index()) {
                program.gap = None;
            }
        }
        self.line(now, &known)
    }

    fn enter(&mut self, now: Time, id: ProgramId, arrival: &Arrival) {
        let group = self.enter_group(arrival);
        self.next_rank += 1;
        let program = Program {
            home: None,
            segment: None,
            rank: self.next_rank,
            resident_since: now,
            served: now,
            gap: None,
            run_s: 0.0,
            group,
            running: 0,
            prompt: 0,
            private: 0,
        };
        self.programs.insert(id.index(), program);
    }

    fn enter_group(&mut self, arrival: &Arrival) -> u16 {
        let (group, reused) = self.groups.enter(arrival.shared);
        if reused {
            for cache in &mut self.caches {
                cache.shadow.forget_prefix(group);
            }
        }
        group
    }

    fn mark_wanted(&mut self, id: ProgramId, wanted: bool) {
        let Some(program) = self.programs.get(id.index()) else {
            return;
        };
        if let (Some(home), Some(segment)) = (program.home, program.segment) {
            let cache = &mut self.caches[home.index()];
            if let Some(node) = cache.shadow.get_mut(segment) {
                node.wanted = wanted;
                cache.touch();
            }
        }
    }

    fn finish(
        &mut self,
        now: Time,
        request: RequestId,
        (outcome, usage): (Outcome, Option<Usage>),
        out: &mut Decisions,
    ) {
        if let Some(held) = self.waiting.remove(request) {
            if let Some(id) = held.arrival.program {
                self.mark_wanted(id, false);
            }
            return self.fill(now, out);
        }
        let Some(flight) = self.roster.finish(request) else {
            return;
        };
        let Some(run) = self.runs.remove(request.index()) else {
            return;
        };
        self.leave(now, (request, &run), flight.backend, usage);
        let idles = self.park(now, &run, flight.backend, usage);
        let cache = &mut self.caches[flight.backend.index()];
        if run.group != NO_GROUP {
            cache.shadow.leave_prefix(now, run.group);
        }
        if run.program.is_none() {
            self.groups.leave(run.group);
        }
        // What a program does next is told next, and until then its context cannot be judged.
        if !(idles && outcome.is_success()) {
            self.fill(now, out);
        }
    }

    fn begin_gap(&mut self, now: Time, id: ProgramId, kind: GapKind, out: &mut Decisions) {
        let Some(program) = self.programs.get_mut(id.index()) else {
            return;
        };
        let class = self.returns.class(program.group, kind);
        program.gap = Some((now, class));
        if let (Some(home), Some(segment)) = (program.home, program.segment) {
            let cache = &mut self.caches[home.index()];
            if let Some(node) = cache.shadow.get_mut(segment) {
                node.class = class;
            }
            cache.touch();
        }
        self.fill(now, out);
    }

    fn release(&mut self, now: Time, id: ProgramId, out: &mut Decisions) {
        let Some(program) = self.programs.remove(id.index()) else {
            return;
        };
        if let (Some(home), Some(segment)) = (program.home, program.segment) {
            let cache = &mut self.caches[home.index()];
            cache.shadow.disown(segment);
            cache.touch();
        }
        if let Some((_, class)) = program.gap {
            self.returns.observe_end(class);
        }
        self.groups.get_mut(program.group).observe_return(false);
        self.groups.leave(program.group);
        self.fill(now, out);
    }

    fn sample(&mut self, sample: &BackendSample) {
        let cache = &mut self.caches[sample.backend.index()];
        if let (Some(usage), Some(reported), 0) =
            (sample.kv_usage, cache.shadow.reported(), sample.waiting)
        {
            let counted = Tokens(cache.shadow.in_use()).as_f64();
            cache
                .capacity
                .observe_usage(usage.get(), reported.as_f64(), counted);
            self.believe(sample.backend);
        }
    }

    /// A backend is lost, and with it every context there.
    fn lose(&mut self, now: Time, backend: BackendId, out: &mut Decisions) {
        self.caches[backend.index()].shadow.clear();
        while let Some(held) = self.head(Line::Warm(backend)).copied() {
            let key = self.cold_key(held.since, &held.arrival);
            self.waiting.rekey(held.arrival.request, key);
        }
        self.fill(now, out);
    }

    /// Keeps one cache per backend.
    fn observe(&mut self, event: &Event) {
        self.roster.observe(event);
        let prior = self.config.prefill_us_per_token / 1e6;
        self.caches
            .resize_with(self.roster.len(), || Cache::new(prior));
        if let Event::BackendUp { backend, .. } = *event
            && let Some(known) = self.roster.get_up(backend)
        {
            let cache = &mut self.caches[backend.index()];
            cache.shadow.set_capacity(known.kv_capacity);
            cache.touch();
        }
    }
}

impl Policy for Kvgate {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        self.observe(event);
        match *event {
            Event::Arrive(arrival) => self.arrive(now, now, arrival, out),
            Event::Rearrive { arrival, since } => self.arrive(now, since, arrival, out),
            Event::Adopt(adoption) => self.adopt(now, adoption.arrival, adoption.backend),
            Event::FirstToken { request } => self.first_token(now, request),
            Event::Finish {
                request,
                outcome,
                usage,
            } => self.finish(now, request, (outcome, usage), out),
            Event::ToolGap { program, kind } => self.begin_gap(now, program, kind, out),
            Event::Release { program } => self.release(now, program, out),
            Event::BackendUp { .. } => self.fill(now, out),
            Event::BackendDown { backend } => self.lose(now, backend, out),
            Event::Tick => {
                self.time_out(now, out);
                if self.rethink.is_some_and(|due| due <= now) {
                    self.rethink = None;
                    self.fill(now, out);
                }
            }
            Event::Sample(sample) => self.sample(&sample),
        }
        if self.waiting.is_empty() || self.roster.up().next().is_none() {
            self.rethink = None;
        } else {
            self.rethink = Some(self.rethink.unwrap_or_else(|| now + RETHINK));
        }
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        let at = |at, why| Wakeup { at, why };
        Wakeup::earliest(
            self.rethink.map(|time| at(time, "return rates change")),
            self.waiting.deadline().map(|time| at(time, "hold timeout")),
        )
    }

    fn snapshot(&self) -> PolicySnapshot {
        let first = self.caches.first();
        let of = |value: fn(&Cache) -> f64| first.map_or(0.0, value);
        PolicySnapshot {
            policy: NAME,
            held: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            programs: u32::try_from(self.programs.len()).unwrap_or(u32::MAX),
            paused: 0,
            resident: Tokens(
                self.caches
                    .iter()
                    .map(|cache| cache.shadow.resident())
                    .sum(),
            ),
            values: vec![
                ("max_held", self.config.max_held.into()),
                ("hold_timeout_s", self.config.hold_timeout_s),
                ("room", of(|cache| Tokens(cache.shadow.room()).as_f64())),
                ("reserve", of(Cache::reserve)),
                ("kept", of(|cache| cache.kept.into())),
                (
                    "distrusted",
                    of(|cache| f64::from(u8::from(cache.capacity.is_distrusted()))),
                ),
                ("moved", Tokens(self.moved).as_f64()),
                ("timed_out", Tokens(self.timed_out).as_f64()),
                ("untracked", Tokens(self.untracked).as_f64()),
            ],
            estimates: vec![
                ("phi", of(|cache| cache.price.phi())),
                (
                    "prefill_us_per_token",
                    of(|cache| cache.price.prefill_s() * 1e6),
                ),
                (
                    "capacity",
                    of(|cache| Tokens(cache.shadow.capacity()).as_f64()),
                ),
                ("prediction_error", of(|cache| cache.capacity.error())),
                ("strangers", self.strangers.share()),
            ],
            pins: Vec::new(),
        }
    }

    fn program(&self, program: ProgramId) -> ProgramView {
        let _ = program;
        ProgramView::default()
    }
}

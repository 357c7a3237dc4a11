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
//! `returns`: how soon a program returns. `groups`: what programs with one prefix have in common.

mod cache;
mod capacity;
mod config;
mod groups;
mod lru;
mod price;
mod returns;
mod shadow;
#[cfg(test)]
mod tests;

pub use config::Config;

use std::time::Duration;

use super::roster::{Flight, Roster};
use super::slots::Slots;
use super::waiting::{Held, Waiting};
use super::{
    Arrival, BackendId, BackendSample, Decisions, Event, GapKind, HoldReason, Outcome, Policy, PolicySnapshot,
    ProgramId, ProgramView, RejectReason, RequestId, Time, Tokens, Usage, Wakeup, settings,
};
use cache::Cache;
use groups::Groups;
use lru::{Handle, Owner};
use returns::{NO_GROUP, Returns};
use shadow::Here;

/// The name in the registry.
pub const NAME: &str = "kvgate";

/// How often a held request is thought about when nothing happens: return rates change with time alone.
const RETHINK: Duration = Duration::from_millis(100);
/// Part of the expected output that a running request is counted with, on average over its run.
const OUTPUT_PART: f64 = 0.3;
/// How far down the line a request is looked for whose prefix is in use.
const AFFINE: usize = 16;
/// A program's turn is at least this long.
const LEAST_TURN_S: f64 = 2.0;

/// Which line a held request stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    /// Its context is on this backend. Programs that came first go first.
    Warm(BackendId),
    /// It starts from nothing, on any backend. In order of arrival.
    Cold,
}

/// The queue's order: the line, then the place in it.
type Key = (Line, u64);

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

/// A request that runs.
#[derive(Clone, Copy, Debug)]
struct Run {
    program: Option<ProgramId>,
    group: u16,
    /// Private tokens counted for it.
    private: u32,
    admitted: Time,
    first_token: Option<Time>,
    /// It was the only one that prefilled until its first token.
    prefilled_alone: bool,
    /// It is its program's first step, and its prefix was in use.
    meets_prefix: bool,
    /// Private tokens that its program had left, and how much of them each candidate foretold to be there.
    context: u32,
    foretold: Here,
    /// Tokens counted for its program's growth.
    growth: f64,
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
            rethink: None,
            timed_out: 0,
            untracked: 0,
            moved: 0,
            config,
        }
    }

    fn arrive(&mut self, now: Time, mut arrival: Arrival, out: &mut Decisions) {
        let Some(least) = self.roster.least_in_flight() else {
            return out.reject(arrival.request, RejectReason::NoBackend);
        };
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let Some(id) = tracked else {
            self.untracked += u64::from(arrival.program.is_some());
            arrival.program = None;
            return self.start(now, &arrival, least, out);
        };
        let line = self.meet(now, id, &arrival);
        let key = self.key(line, id, now);
        self.waiting.push(now, key, arrival);
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
        let first = self.head(line).is_some_and(|h| h.arrival.request == arrival.request);
        let reason = if first { HoldReason::NoRoom } else { HoldReason::BehindOlder };
        out.hold(arrival.request, reason);
    }

    /// Notes a program's arrival, and says which line it stands in.
    fn meet(&mut self, now: Time, id: ProgramId, arrival: &Arrival) -> Line {
        let Some(known) = self.programs.get(id.index()).copied() else {
            self.enter(now, id, arrival);
            return Line::Cold;
        };
        let home = known.home.filter(|home| self.roster.get_up(*home).is_some());
        let warm = home.filter(|home| known.running > 0 || self.is_warm(*home, &known));
        if let Some((since, class)) = known.gap {
            self.returns.observe(class, now.since(since));
            let group = self.groups.get_mut(known.group);
            group.observe_return(warm.is_some());
            group.observe_cycle(f64::from(known.run_s) + now.since(since).as_secs_f64());
            group.observe_growth(arrival.prompt.as_f64() - f64::from(known.prompt));
            if let Some(program) = self.programs.get_mut(id.index()) {
                program.gap = None;
            }
        }
        match warm {
            Some(home) if known.running > 0 || !self.is_turn_over(now, home, &known) => {
                Line::Warm(home)
            }
            Some(_) | None => Line::Cold,
        }
    }

    fn enter(&mut self, now: Time, id: ProgramId, arrival: &Arrival) {
        let group = self.enter_group(arrival);
        self.next_rank += 1;
        let program = Program {
            home: None,
            segment: None,
            rank: self.next_rank,
            resident_since: now,
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

    fn key(&self, line: Line, id: ProgramId, since: Time) -> Key {
        match line {
            Line::Warm(_) => (line, self.programs.get(id.index()).map_or(0, |p| p.rank)),
            Line::Cold => (line, since.as_nanos()),
        }
    }

    /// Whether at least half of an idle program's context is believed to be there.
    fn is_warm(&self, home: BackendId, program: &Program) -> bool {
        let shadow = &self.caches[home.index()].shadow;
        let here = program.segment.map_or(0, |segment| shadow.warm(segment));
        here > 0 && here >= program.private / 2
    }

    /// Whether a program has had its turn while somebody has waited for too long.
    fn is_turn_over(&self, now: Time, home: BackendId, program: &Program) -> bool {
        let aged = self.head(Line::Cold);
        let aged = aged.is_some_and(|held| now.since(held.since) >= self.age());
        aged && now.since(program.resident_since) >= self.turn(home, program)
    }

    fn age(&self) -> Duration {
        settings::duration(self.config.age_s)
    }

    fn turn(&self, home: BackendId, program: &Program) -> Duration {
        let reload_s = self.caches[home.index()].price.prefill_s() * f64::from(program.private);
        settings::duration((self.config.turn_reloads * reload_s).max(LEAST_TURN_S))
    }

    fn head(&self, line: Line) -> Option<&Held<Key>> {
        let first = self.waiting.first_from((line, 0))?;
        Some(first).filter(|held| held.key.0 == line)
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

    /// Private tokens that a request is counted with.
    fn private(&self, arrival: &Arrival, group: u16) -> u32 {
        let group = self.groups.get(group);
        let output = Tokens::from_f64(OUTPUT_PART * group.output());
        let private = arrival.prompt + output - Tokens(group.prefix.into());
        u32::try_from(private.0).unwrap_or(u32::MAX).max(1)
    }

    fn group_of(&self, arrival: &Arrival) -> u16 {
        let program = arrival.program.and_then(|id| self.programs.get(id.index()));
        program.map_or(NO_GROUP, |program| program.group)
    }

    /// Admits what waits for its own context on `backend`.
    fn fill_warm(&mut self, now: Time, backend: BackendId, out: &mut Decisions) {
        while self.roster.get_up(backend).is_some()
            && let Some(held) = self.head(Line::Warm(backend)).copied()
        {
            let request = held.arrival.request;
            let program = held.arrival.program.and_then(|id| self.programs.get(id.index()));
            let stays = program.is_some_and(|p| p.running > 0 || self.is_warm(backend, p));
            if !stays {
                self.waiting.rekey(request, (Line::Cold, held.since.as_nanos()));
                continue;
            }
            if !self.fits_warm(backend, &held.arrival) {
                return;
            }
            self.waiting.remove(request);
            self.start(now, &held.arrival, backend, out);
        }
    }

    /// A request whose context is there needs what running requests leave: the rest can be evicted for its growth.
    fn fits_warm(&self, backend: BackendId, arrival: &Arrival) -> bool {
        let cache = &self.caches[backend.index()];
        let private = self.private(arrival, self.group_of(arrival));
        cache.running == 0
            || !cache.is_gated()
            || u64::from(private) <= cache.shadow.left_by_running()
    }

    /// Admits what starts from nothing, as long as the next of them finds room.
    fn fill_cold(&mut self, now: Time, out: &mut Decisions) {
        while let Some(held) = self.next_cold(now) {
            for backend in self.roster.ids() {
                self.plan(now, backend);
            }
            let Some(backend) = self.place(&held.arrival) else {
                return;
            };
            self.waiting.remove(held.arrival.request);
            self.start(now, &held.arrival, backend, out);
        }
    }

    /// The first in the line, or one close behind it whose prefix is in use while that of the first is not.
    fn next_cold(&self, now: Time) -> Option<Held<Key>> {
        let patience = settings::duration(self.config.affinity_s);
        let head = self.head(Line::Cold)?;
        let mut place = None;
        let mut at = Some(head);
        for _ in 0..AFFINE {
            let Some(held) = at else { break };
            let group = self.group_of(&held.arrival);
            let used = |cache: &Cache| cache.shadow.is_used(group);
            if group == NO_GROUP
                || self.caches.iter().any(used)
                || now.since(held.since) >= patience
            {
                return Some(*held);
            }
            let from = place.or_else(|| self.waiting.place(head.arrival.request));
            let next = self.waiting.next(from);
            place = next.map(|(place, _)| place);
            at = next.and_then(|(_, request)| self.waiting.get(request));
        }
        Some(*head)
    }

    fn plan(&mut self, now: Time, backend: BackendId) {
        let aged = self.head(Line::Cold);
        let aged = aged.is_some_and(|held| now.since(held.since) >= self.age());
        let cache = &self.caches[backend.index()];
        if !cache.is_stale(now) {
            return;
        }
        let a = cache.price.prefill_s() * self.config.turn_reloads;
        let programs = &self.programs;
        let is_over = |node: &lru::Node| {
            let Owner::Program(id) = node.owner else {
                return true;
            };
            let program = programs.get(id.index()).filter(|_| aged);
            program.is_some_and(|program| {
                let turn = (a * f64::from(program.private)).max(LEAST_TURN_S);
                now.since(program.resident_since) >= settings::duration(turn)
            })
        };
        let cache = &mut self.caches[backend.index()];
        cache.plan(now, &mut self.returns, &self.groups, is_over);
    }

    /// The backend with the most room left after a request that starts from nothing; `None` if it fits nowhere.
    fn place(&self, arrival: &Arrival) -> Option<BackendId> {
        let slack = |backend: BackendId| {
            let cache = &self.caches[backend.index()];
            if !cache.is_gated() {
                return Some(f64::INFINITY);
            }
            if self.head(Line::Warm(backend)).is_some() {
                return None;
            }
            let slack = Tokens(cache.shadow.room()).as_f64()
                - cache.reserve()
                - self.cold_need(backend, arrival);
            (slack >= 0.0 || cache.running == 0).then_some(slack)
        };
        let fitting = self.roster.up().filter_map(|(id, backend)| {
            Some((slack(id)?, std::cmp::Reverse(backend.in_flight), std::cmp::Reverse(id)))
        });
        let best = fitting.max_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        best.map(|(_, _, std::cmp::Reverse(id))| id)
    }

    /// Room that a request takes on `backend`, if it is not to evict what is protected.
    fn cold_need(&self, backend: BackendId, arrival: &Arrival) -> f64 {
        let shadow = &self.caches[backend.index()].shadow;
        let id = arrival.program.and_then(|id| self.programs.get(id.index()));
        let group = self.group_of(arrival);
        let prefix = shadow.prefix_need(group, self.groups.get(group).prefix);
        let own = id.filter(|program| program.home == Some(backend));
        let own = own.and_then(|program| program.segment);
        let own = own.map_or(0, |segment| shadow.warm_protected(segment));
        let need = u64::from(self.private(arrival, group)) + u64::from(prefix);
        Tokens(need.saturating_sub(own.into())).as_f64()
    }

    fn start(&mut self, now: Time, arrival: &Arrival, backend: BackendId, out: &mut Decisions) {
        let request = arrival.request;
        let flight = Flight {
            backend,
            program: arrival.program,
        };
        self.roster.start(request, flight);
        out.admit(request, backend);
        let group = match arrival.program {
            Some(_) => self.group_of(arrival),
            None => self.enter_group(arrival),
        };
        let private = self.private(arrival, group);
        let here = self.occupy(now, arrival, backend);
        let cache = &mut self.caches[backend.index()];
        let meets_prefix = cache.shadow.is_used(group);
        let prefix = self.groups.get(group).prefix;
        let prefix_here = match group {
            NO_GROUP => [u32::MAX; capacity::CANDIDATES.len()],
            _ => cache.shadow.use_prefix(group, prefix),
        };
        let (context, mut foretold) = here.unwrap_or_default();
        for (foretold, prefix_here) in foretold.iter_mut().zip(prefix_here) {
            *foretold = if prefix_here < prefix - prefix / 8 { 0 } else { *foretold };
        }
        cache.shadow.start(private);
        cache.alone = (cache.prefilling == 0).then_some(request);
        cache.running += 1;
        cache.prefilling += 1;
        let growth = match arrival.program {
            Some(_) if !arrival.last_step => self.groups.get(group).growth_within(cache.horizon_s()),
            Some(_) | None => 0.0,
        };
        cache.running_growth += growth;
        cache.touch();
        let run = Run {
            program: arrival.program,
            group,
            private,
            admitted: now,
            first_token: None,
            prefilled_alone: false,
            meets_prefix: meets_prefix && here.is_none() && arrival.program.is_some(),
            context,
            foretold,
            growth,
        };
        self.runs.insert(request.index(), run);
    }

    /// The request's program takes its context on `backend` into use. Returns the private tokens it had left and
    /// what of them is foretold to be there; `None` on its first step.
    fn occupy(&mut self, now: Time, arrival: &Arrival, backend: BackendId) -> Option<(u32, Here)> {
        let id = arrival.program?;
        let private = self.private(arrival, self.group_of(arrival));
        let program = self.programs.get(id.index()).copied()?;
        let cold = program.running == 0
            && (program.home != Some(backend) || !self.is_warm(backend, &program));
        let mut found = (program.running == 0).then_some((program.private, Here::default()));
        if let (Some(home), Some(segment)) = (program.home, program.segment) {
            let shadow = &mut self.caches[home.index()].shadow;
            if home == backend {
                found = Some((program.private, shadow.take(segment)));
            } else {
                shadow.disown(segment);
                self.moved += 1;
            }
        }
        let is_first = program.home.is_none();
        if let Some(program) = self.programs.get_mut(id.index()) {
            program.segment = None;
            program.home = Some(backend);
            program.running += 1;
            program.prompt = u32::try_from(arrival.prompt.0).unwrap_or(u32::MAX);
            program.private = private;
            if cold {
                program.resident_since = now;
            }
        }
        found.filter(|_| !is_first)
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
        self.leave(now, request, &run, flight.backend, usage);
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

    /// Takes an ended request off, and learns from it.
    fn leave(&mut self, now: Time, request: RequestId, run: &Run, backend: BackendId, usage: Option<Usage>) {
        let cache = &mut self.caches[backend.index()];
        cache.touch();
        cache.shadow.finish(run.private);
        cache.running = cache.running.saturating_sub(1);
        cache.running_growth -= run.growth;
        if run.first_token.is_none() {
            cache.prefilling = cache.prefilling.saturating_sub(1);
            cache.alone = cache.alone.filter(|alone| *alone != request);
        }
        let Some(usage) = usage else { return };
        self.groups.get_mut(run.group).observe_step(usage.output);
        if let Some(first) = run.first_token {
            let rest = usage.output - Tokens(1);
            cache.price.observe_decode(now, rest, now.since(first).as_secs_f64());
        }
        if let Some(cached) = usage.cached {
            self.learn(run, backend, usage.prompt, cached);
        }
    }

    /// Learns from what a backend found in its cache.
    fn learn(&mut self, run: &Run, backend: BackendId, prompt: Tokens, cached: Tokens) {
        let cache = &mut self.caches[backend.index()];
        if let Some(first) = run.first_token.filter(|_| run.prefilled_alone) {
            let secs = first.since(run.admitted).as_secs_f64();
            cache.price.observe_prefill(prompt - cached, secs);
        }
        let cached = u32::try_from(cached.0).unwrap_or(u32::MAX);
        let group = self.groups.get_mut(run.group);
        if run.meets_prefix && run.group != NO_GROUP {
            group.observe_prefix(cached);
            for cache in &mut self.caches {
                cache.shadow.resize_prefix(run.group, group.prefix);
            }
        }
        let private = cached.saturating_sub(group.prefix);
        let cache = &mut self.caches[backend.index()];
        cache.capacity.observe(run.context, private, &run.foretold);
        self.believe(backend);
    }

    /// What an ended request leaves in the cache. Returns whether its program is idle now.
    fn park(&mut self, now: Time, run: &Run, backend: BackendId, usage: Option<Usage>) -> bool {
        let prefix = Tokens(self.groups.get(run.group).prefix.into());
        let left = usage.map_or(Tokens(run.private.into()), |usage| usage.context() - prefix);
        let left = u32::try_from(left.0).unwrap_or(u32::MAX);
        let shadow = &mut self.caches[backend.index()].shadow;
        let Some(id) = run.program else {
            shadow.push(Owner::Nobody, left, now);
            return false;
        };
        let Some(program) = self.programs.get_mut(id.index()) else {
            return false;
        };
        program.running = program.running.saturating_sub(1);
        program.run_s = now.since(run.admitted).as_secs_f32();
        if let Some(usage) = usage {
            program.prompt = u32::try_from(usage.prompt.0).unwrap_or(u32::MAX);
            program.private = u32::try_from((usage.prompt - prefix).0).unwrap_or(u32::MAX);
        }
        if program.running > 0 || program.home != Some(backend) {
            shadow.push(Owner::Nobody, left, now);
            return false;
        }
        program.segment = shadow.push(Owner::Program(id), left, now);
        if let Some(node) = program.segment.and_then(|segment| shadow.get_mut(segment)) {
            node.group = program.group;
        }
        true
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

    fn first_token(&mut self, now: Time, request: RequestId) {
        let Some(run) = self.runs.get_mut(request.index()) else {
            return;
        };
        let Some(flight) = self.roster.flight(request) else {
            return;
        };
        if run.first_token.is_none() {
            let cache = &mut self.caches[flight.backend.index()];
            run.first_token = Some(now);
            run.prefilled_alone = cache.alone == Some(request);
            cache.prefilling = cache.prefilling.saturating_sub(1);
            cache.alone = None;
        }
    }

    fn sample(&mut self, sample: &BackendSample) {
        let cache = &mut self.caches[sample.backend.index()];
        if let (Some(usage), Some(reported), 0) =
            (sample.kv_usage, cache.shadow.reported(), sample.waiting)
        {
            let counted = Tokens(cache.shadow.in_use()).as_f64();
            cache.capacity.observe_usage(usage.get(), reported.as_f64(), counted);
            self.believe(sample.backend);
        }
    }

    fn believe(&mut self, backend: BackendId) {
        if self.config.correct_capacity {
            let cache = &mut self.caches[backend.index()];
            cache.shadow.believe(cache.capacity.believed());
        }
    }

    fn fill(&mut self, now: Time, out: &mut Decisions) {
        if self.waiting.is_empty() {
            return;
        }
        for backend in self.roster.ids() {
            self.fill_warm(now, backend, out);
        }
        self.fill_cold(now, out);
    }

    /// The bound on holding: sends what has waited long enough, or refuses it when no backend is up.
    fn time_out(&mut self, now: Time, out: &mut Decisions) {
        while let Some(request) = self.waiting.expired(now) {
            let Some(held) = self.waiting.remove(request) else {
                return;
            };
            self.timed_out += 1;
            let home = match held.key.0 {
                Line::Warm(home) => self.roster.get_up(home).map(|_| home),
                Line::Cold => None,
            };
            let backend = home.or_else(|| self.place(&held.arrival));
            match backend.or_else(|| self.roster.least_in_flight()) {
                Some(backend) => self.start(now, &held.arrival, backend, out),
                None => out.reject(request, RejectReason::NoBackend),
            }
        }
    }

    /// A backend is lost, and with it every context there.
    fn lose(&mut self, now: Time, backend: BackendId, out: &mut Decisions) {
        self.caches[backend.index()].shadow.clear();
        while let Some(held) = self.head(Line::Warm(backend)).copied() {
            let key = (Line::Cold, held.since.as_nanos());
            self.waiting.rekey(held.arrival.request, key);
        }
        self.fill(now, out);
    }

    /// Keeps one cache per backend.
    fn observe(&mut self, event: &Event) {
        self.roster.observe(event);
        let prior = self.config.prefill_us_per_token / 1e6;
        self.caches.resize_with(self.roster.len(), || Cache::new(prior));
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
            Event::Arrive(arrival) => self.arrive(now, arrival, out),
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
            resident: Tokens(self.caches.iter().map(|cache| cache.shadow.resident()).sum()),
            values: vec![
                ("max_held", self.config.max_held.into()),
                ("hold_timeout_s", self.config.hold_timeout_s),
                ("phi", of(|cache| cache.price.phi())),
                ("prefill_us_per_token", of(|cache| cache.price.prefill_s() * 1e6)),
                ("capacity", of(|cache| Tokens(cache.shadow.capacity()).as_f64())),
                ("room", of(|cache| Tokens(cache.shadow.room()).as_f64())),
                ("reserve", of(Cache::reserve)),
                ("kept", of(|cache| cache.kept.into())),
                ("prediction_error", of(|cache| cache.capacity.error())),
                ("distrusted", of(|cache| f64::from(u8::from(cache.capacity.is_distrusted())))),
                ("moved", Tokens(self.moved).as_f64()),
                ("timed_out", Tokens(self.timed_out).as_f64()),
                ("untracked", Tokens(self.untracked).as_f64()),
            ],
        }
    }

    fn program(&self, program: ProgramId) -> ProgramView {
        let _ = program;
        ProgramView::default()
    }
}

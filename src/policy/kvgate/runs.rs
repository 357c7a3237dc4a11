//! A request from its admission to its end: what it takes into use, what it leaves, and what it teaches.

use super::Kvgate;
use super::capacity::CANDIDATES;
use super::lru::Owner;
use super::returns::NO_GROUP;
use super::shadow::Here;
use crate::policy::roster::Flight;
use crate::policy::{Arrival, BackendId, Decisions, ProgramId, RequestId, Time, Tokens, Usage};

/// Part of the expected output that a running request is counted with, on average over its run.
const OUTPUT_PART: f64 = 0.3;

/// Part of its time within which a whole reply that is not streamed arrives.
const ONE_PIECE: f64 = 1.0 / 256.0;

/// A request that runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) program: Option<ProgramId>,
    pub(super) group: u16,
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

impl Run {
    /// Whether the reply, complete at `now`, was not streamed: its first token came with its last, and says neither when
    /// prefill was over nor how fast tokens come.
    fn came_in_one_piece(&self, now: Time) -> bool {
        let first = self.first_token.unwrap_or(now);
        now.since(first).as_secs_f64() < ONE_PIECE * now.since(self.admitted).as_secs_f64()
    }
}

/// A count of tokens in the width that the tables use.
fn narrow(tokens: Tokens) -> u32 {
    u32::try_from(tokens.0).unwrap_or(u32::MAX)
}

impl Kvgate {
    /// Private tokens that a request is counted with.
    pub(super) fn private(&self, arrival: &Arrival, group: u16) -> u32 {
        let group = self.groups.get(group);
        let output = Tokens::from_f64(OUTPUT_PART * group.output());
        narrow(arrival.prompt + output - Tokens(group.prefix.into())).max(1)
    }

    pub(super) fn group_of(&self, arrival: &Arrival) -> u16 {
        let program = arrival.program.and_then(|id| self.programs.get(id.index()));
        program.map_or(NO_GROUP, |program| program.group)
    }

    /// Sends a request to `backend`.
    pub(super) fn start(
        &mut self,
        now: Time,
        arrival: &Arrival,
        backend: BackendId,
        out: &mut Decisions,
    ) {
        let (request, program) = (arrival.request, arrival.program);
        self.roster.start(request, Flight { backend, program });
        out.admit(request, backend);
        let group = match program {
            Some(_) => self.group_of(arrival),
            None => self.enter_group(arrival),
        };
        let private = self.private(arrival, group);
        let left = self.occupy(now, arrival, private, backend);
        let known = self.groups.get(group);
        let cache = &mut self.caches[backend.index()];
        let is_first = program.is_some() && left.is_none();
        let meets_prefix = is_first && known.is_computed && cache.shadow.is_used(group);
        let prefix_here = match group {
            NO_GROUP => [u32::MAX; CANDIDATES.len()],
            _ => cache.shadow.use_prefix(group, known.prefix),
        };
        let (context, mut foretold) = left.unwrap_or_default();
        for (foretold, prefix_here) in foretold.iter_mut().zip(prefix_here) {
            // Without what comes before it, a context is not found.
            let is_found = prefix_here >= known.prefix - known.prefix / 8;
            *foretold *= u32::from(is_found);
        }
        let grows = program.is_some() && !arrival.last_step;
        let growth = if grows {
            known.growth_within(cache.horizon_s())
        } else {
            0.0
        };
        cache.begin(request, private, growth);
        let run = Run {
            program,
            group,
            private,
            admitted: now,
            first_token: None,
            prefilled_alone: false,
            meets_prefix,
            context,
            foretold,
            growth,
        };
        self.runs.insert(request.index(), run);
    }

    /// The request's program takes its context on `backend` into use. Returns the private tokens that it had left
    /// and what of them is foretold to be there; `None` on its first step.
    fn occupy(
        &mut self,
        now: Time,
        arrival: &Arrival,
        private: u32,
        backend: BackendId,
    ) -> Option<(u32, Here)> {
        let id = arrival.program?;
        let known = self.programs.get(id.index()).copied()?;
        let is_cold = known.home != Some(backend) || !self.has_context(backend, &known);
        let mut here = Here::default();
        if let (Some(home), Some(segment)) = (known.home, known.segment) {
            let shadow = &mut self.caches[home.index()].shadow;
            if home == backend {
                here = shadow.take(segment);
            } else {
                shadow.disown(segment);
                self.moved += 1;
            }
        }
        let program = self.programs.get_mut(id.index())?;
        program.segment = None;
        program.home = Some(backend);
        program.running += 1;
        program.prompt = narrow(arrival.prompt);
        program.private = private;
        if is_cold {
            program.resident_since = now;
        }
        // Beside a request of the same program, the context is not idle, and what is found tells nothing.
        let context = if known.running > 0 { 0 } else { known.private };
        known.home.map(|_| (context, here))
    }

    pub(super) fn first_token(&mut self, now: Time, request: RequestId) {
        let (Some(run), Some(flight)) = (
            self.runs.get_mut(request.index()),
            self.roster.flight(request),
        ) else {
            return;
        };
        if run.first_token.is_none() {
            run.first_token = Some(now);
            self.groups.get_mut(run.group).is_computed = true;
            run.prefilled_alone = self.caches[flight.backend.index()].prefilled(request);
        }
    }

    /// Takes an ended request off, and learns from it.
    pub(super) fn leave(
        &mut self,
        now: Time,
        (request, run): (RequestId, &Run),
        backend: BackendId,
        usage: Option<Usage>,
    ) {
        let cache = &mut self.caches[backend.index()];
        if run.first_token.is_none() {
            cache.prefilled(request);
        }
        cache.end(run.private, run.growth);
        let Some(usage) = usage else { return };
        self.groups.get_mut(run.group).observe_step(usage.output);
        let mut run = *run;
        if run.came_in_one_piece(now) {
            (run.first_token, run.prefilled_alone) = (None, false);
        }
        if let Some(first) = run.first_token {
            let rest = usage.output - Tokens(1);
            let decode_s = now.since(first).as_secs_f64();
            cache.price.observe_decode(now, rest, decode_s);
        }
        if let Some(cached) = usage.cached {
            self.learn(&run, backend, usage.prompt, cached);
        }
    }

    /// Learns from what a backend found in its cache.
    fn learn(&mut self, run: &Run, backend: BackendId, prompt: Tokens, cached: Tokens) {
        if let Some(first) = run.first_token.filter(|_| run.prefilled_alone) {
            let secs = first.since(run.admitted).as_secs_f64();
            let price = &mut self.caches[backend.index()].price;
            price.observe_prefill(prompt - cached, secs);
        }
        let cached = narrow(cached);
        let group = self.groups.get_mut(run.group);
        if run.meets_prefix && run.group != NO_GROUP && group.observe_prefix(cached) {
            for cache in &mut self.caches {
                cache.shadow.resize_prefix(run.group, group.prefix);
            }
        }
        let private = cached.saturating_sub(group.prefix);
        let capacity = &mut self.caches[backend.index()].capacity;
        capacity.observe(run.context, private, &run.foretold);
        self.believe(backend);
    }

    /// Follows the capacity that is now believed.
    pub(super) fn believe(&mut self, backend: BackendId) {
        if self.config.correct_capacity {
            let cache = &mut self.caches[backend.index()];
            cache.shadow.believe(cache.capacity.believed());
        }
    }

    /// What an ended request leaves in the cache. Returns whether its program is idle now.
    pub(super) fn park(
        &mut self,
        now: Time,
        run: &Run,
        backend: BackendId,
        usage: Option<Usage>,
    ) -> bool {
        let prefix = Tokens(self.groups.get(run.group).prefix.into());
        let counted = Tokens(run.private.into());
        let left = narrow(usage.map_or(counted, |usage| usage.context() - prefix));
        let shadow = &mut self.caches[backend.index()].shadow;
        let program = run
            .program
            .and_then(|id| Some((id, self.programs.get_mut(id.index())?)));
        let Some((id, program)) = program else {
            shadow.push(Owner::Nobody, left, now);
            return false;
        };
        program.running = program.running.saturating_sub(1);
        program.served = now;
        program.run_s = now.since(run.admitted).as_secs_f32();
        if let Some(usage) = usage {
            program.prompt = narrow(usage.prompt);
            program.private = narrow(usage.prompt - prefix);
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
}

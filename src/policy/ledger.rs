//! Who occupies which backend's KV cache, as far as the gate knows: running requests and parked programs.
//!
//! A *footprint* is the tokens of one prompt, part of which may be a prefix that other programs share. The
//! shared part counts once per backend, for as long as anyone there uses it. Sums move only when a footprint
//! comes or goes, and debug builds prove them against a recount (law P8).

use std::collections::{BTreeMap, BTreeSet};

use super::slots::Slots;
use super::{BackendId, ProgramId, RequestId, SharedPrefix, Tokens};

/// The KV tokens of one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// All of them, the shared prefix included.
    pub tokens: Tokens,
    /// The part that other programs share, if known.
    pub shared: Option<SharedPrefix>,
}

/// Tokens counted on one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Private parts of running requests.
    pub running: Tokens,
    /// Private parts of parked programs.
    pub idle: Tokens,
    /// Shared prefixes, each once.
    pub shared: Tokens,
}

impl Sums {
    /// Everything counted.
    pub fn total(self) -> Tokens {
        self.running + self.idle + self.shared
    }
}

/// A footprint as it was counted, so that it is taken off exactly.
#[derive(Clone, Copy, Debug)]
struct Entry {
    backend: BackendId,
    private: Tokens,
    prefix: Option<u64>,
    /// Where it stands among the parked programs of its backend; unused while running.
    rank: u64,
}

/// One shared prefix on one backend.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    /// Its length, as its first user estimated it.
    tokens: Tokens,
    users: u32,
}

/// One backend's page.
#[derive(Debug, Default)]
struct Page {
    sums: Sums,
    prefixes: BTreeMap<u64, Prefix>,
    /// Parked programs by rank.
    idle: BTreeSet<(u64, ProgramId)>,
}

impl Page {
    /// The length counted for a prefix.
    fn length(&self, fingerprint: u64) -> Tokens {
        let known = self.prefixes.get(&fingerprint);
        known.map_or(Tokens::ZERO, |prefix| prefix.tokens)
    }

    fn is_last_user(&self, fingerprint: u64) -> bool {
        let known = self.prefixes.get(&fingerprint);
        known.is_some_and(|prefix| prefix.users == 1)
    }

    /// Tokens that `footprint` would add, once the prefix `leaving` is gone.
    fn added(&self, footprint: Footprint, leaving: Option<u64>) -> Tokens {
        let Some(shared) = footprint.shared else {
            return footprint.tokens;
        };
        let known = self.prefixes.get(&shared.fingerprint);
        let stays = known.filter(|_| leaving != Some(shared.fingerprint));
        match stays {
            Some(prefix) => footprint.tokens - prefix.tokens,
            None => footprint.tokens.max(shared.tokens),
        }
    }

    fn use_prefix(&mut self, shared: SharedPrefix) -> Tokens {
        let sum = &mut self.sums.shared;
        let prefix = self.prefixes.entry(shared.fingerprint).or_insert_with(|| {
            *sum += shared.tokens;
            Prefix {
                tokens: shared.tokens,
                users: 0,
            }
        });
        prefix.users += 1;
        prefix.tokens
    }

    fn drop_prefix(&mut self, fingerprint: u64) -> Tokens {
        let Some(prefix) = self.prefixes.get_mut(&fingerprint) else {
            return Tokens::ZERO;
        };
        prefix.users -= 1;
        let tokens = prefix.tokens;
        if prefix.users == 0 {
            self.sums.shared -= tokens;
            self.prefixes.remove(&fingerprint);
        }
        tokens
    }
}

/// The ledger of all backends.
#[derive(Debug, Default)]
pub struct Ledger {
    running: Slots<Entry>,
    parked: Slots<Entry>,
    pages: Vec<Page>,
    /// Transitions since the last recount (debug builds).
    unproved: usize,
}

impl Ledger {
    /// An empty ledger.
    pub const fn new() -> Self {
        Self {
            running: Slots::new(),
            parked: Slots::new(),
            pages: Vec::new(),
            unproved: 0,
        }
    }

    /// Counts a request that starts to run on `backend`.
    pub fn start(&mut self, request: RequestId, backend: BackendId, footprint: Footprint) {
        self.finish(request);
        let entry = self.count(backend, footprint);
        self.pages[backend.index()].sums.running += entry.private;
        self.running.insert(request.index(), entry);
        self.prove();
    }

    /// Takes a request off that has ended, and returns the tokens that its footprint had, shared prefix included;
    /// `None` if it was not running.
    pub fn finish(&mut self, request: RequestId) -> Option<Tokens> {
        let entry = self.running.remove(request.index())?;
        self.pages[entry.backend.index()].sums.running -= entry.private;
        let shared = self.uncount(entry);
        self.prove();
        Some(entry.private + shared)
    }

    /// Counts an idle program whose context stays on `backend`; replaces where it was parked before. `rank` is its
    /// place in [`Self::idle`], in an order of the policy's choice: seniority, size.
    pub fn park(
        &mut self,
        program: ProgramId,
        backend: BackendId,
        footprint: Footprint,
        rank: u64,
    ) {
        self.unpark(program);
        let mut entry = self.count(backend, footprint);
        entry.rank = rank;
        let page = &mut self.pages[backend.index()];
        page.sums.idle += entry.private;
        page.idle.insert((rank, program));
        self.parked.insert(program.index(), entry);
        self.prove();
    }

    /// Takes a parked program off; returns where it was.
    pub fn unpark(&mut self, program: ProgramId) -> Option<BackendId> {
        let entry = self.parked.remove(program.index())?;
        let page = &mut self.pages[entry.backend.index()];
        page.sums.idle -= entry.private;
        page.idle.remove(&(entry.rank, program));
        self.uncount(entry);
        self.prove();
        Some(entry.backend)
    }

    /// Where the program is parked, and its private tokens there.
    pub fn parked(&self, program: ProgramId) -> Option<(BackendId, Tokens)> {
        let entry = self.parked.get(program.index())?;
        Some((entry.backend, entry.private))
    }

    /// The programs parked on `backend`, lowest rank first, then by id.
    pub fn idle(&self, backend: BackendId) -> impl DoubleEndedIterator<Item = ProgramId> {
        let page = self.pages.get(backend.index());
        let idle = page.into_iter().flat_map(|page| page.idle.iter());
        idle.map(|(_, program)| *program)
    }

    /// What is counted on `backend`.
    pub fn sums(&self, backend: BackendId) -> Sums {
        self.pages
            .get(backend.index())
            .map_or_else(Sums::default, |page| page.sums)
    }

    /// Tokens counted over all backends. O(backends).
    pub fn resident(&self) -> Tokens {
        self.pages.iter().map(|page| page.sums.total()).sum()
    }

    /// The total of `backend` if a request of `program` started there now: its own parked tokens turn into
    /// running ones, and a prefix that is already there costs nothing.
    pub fn total_if_started(
        &self,
        backend: BackendId,
        program: Option<ProgramId>,
        footprint: Footprint,
    ) -> Tokens {
        let Some(page) = self.pages.get(backend.index()) else {
            return self.added(backend, footprint);
        };
        let own = program.and_then(|id| self.parked.get(id.index()));
        let Some(own) = own.filter(|entry| entry.backend == backend) else {
            return page.sums.total() + page.added(footprint, None);
        };
        let leaving = own.prefix.filter(|print| page.is_last_user(*print));
        let freed = own.private + leaving.map_or(Tokens::ZERO, |print| page.length(print));
        page.sums.total() - freed + page.added(footprint, leaving)
    }

    /// Tokens that a footprint would add to what is counted on `backend`.
    pub fn added(&self, backend: BackendId, footprint: Footprint) -> Tokens {
        match self.pages.get(backend.index()) {
            Some(page) => page.added(footprint, None),
            None => Page::default().added(footprint, None),
        }
    }

    /// The sums of every backend, recomputed from the footprints: what [`Self::sums`] must equal.
    pub fn recount(&self) -> Vec<Sums> {
        let mut sums = vec![Sums::default(); self.pages.len()];
        let mut used = Vec::with_capacity(self.running.len() + self.parked.len());
        for (_, entry) in self.running.iter() {
            sums[entry.backend.index()].running += entry.private;
            used.extend(entry.prefix.map(|print| (entry.backend, print)));
        }
        for (_, entry) in self.parked.iter() {
            sums[entry.backend.index()].idle += entry.private;
            used.extend(entry.prefix.map(|print| (entry.backend, print)));
        }
        used.sort_unstable();
        used.dedup();
        for (backend, print) in used {
            let length = self.pages[backend.index()].length(print);
            sums[backend.index()].shared += length;
        }
        sums
    }

    fn count(&mut self, backend: BackendId, footprint: Footprint) -> Entry {
        if self.pages.len() <= backend.index() {
            self.pages.resize_with(backend.index() + 1, Page::default);
        }
        let page = &mut self.pages[backend.index()];
        let shared = footprint
            .shared
            .map_or(Tokens::ZERO, |shared| page.use_prefix(shared));
        Entry {
            backend,
            private: footprint.tokens - shared,
            prefix: footprint.shared.map(|shared| shared.fingerprint),
            rank: 0,
        }
    }

    /// Takes the entry's use of its prefix back; returns the prefix's length.
    fn uncount(&mut self, entry: Entry) -> Tokens {
        let page = &mut self.pages[entry.backend.index()];
        let print = entry.prefix;
        print.map_or(Tokens::ZERO, |print| page.drop_prefix(print))
    }

    /// Law P8. A recount is O(n), so it happens once every n transitions: amortised O(1).
    fn prove(&mut self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.unproved += 1;
        if self.unproved > self.running.len() + self.parked.len() {
            self.unproved = 0;
            for (page, sums) in self.pages.iter().zip(self.recount()) {
                debug_assert_eq!(page.sums, sums, "P8: the ledger drifted");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: BackendId = BackendId(0);
    const SYSTEM: SharedPrefix = SharedPrefix {
        fingerprint: 7,
        tokens: Tokens(100),
    };

    const fn plain(tokens: u64) -> Footprint {
        Footprint {
            tokens: Tokens(tokens),
            shared: None,
        }
    }

    const fn sharing(tokens: u64) -> Footprint {
        Footprint {
            tokens: Tokens(tokens),
            shared: Some(SYSTEM),
        }
    }

    #[test]
    fn a_shared_prefix_counts_once_until_its_last_user_leaves() {
        let mut ledger = Ledger::new();
        ledger.start(RequestId(0), B, sharing(300));
        ledger.park(ProgramId(1), B, sharing(150), 0);
        assert_eq!(ledger.sums(B).total(), Tokens(200 + 50 + 100));
        ledger.finish(RequestId(0));
        assert_eq!(ledger.sums(B).total(), Tokens(50 + 100));
        assert_eq!(ledger.unpark(ProgramId(1)), Some(B));
        assert_eq!(ledger.sums(B), Sums::default());
    }

    #[test]
    fn asking_what_a_start_would_cost_agrees_with_starting() {
        for (parked, next) in [
            (plain(40), plain(60)),
            (sharing(140), sharing(160)),
            (sharing(140), plain(60)),
            (plain(40), sharing(160)),
        ] {
            for other in [None, Some(sharing(500))] {
                let mut ledger = Ledger::new();
                if let Some(other) = other {
                    ledger.start(RequestId(9), B, other);
                }
                ledger.park(ProgramId(0), B, parked, 0);
                let asked = ledger.total_if_started(B, Some(ProgramId(0)), next);
                ledger.unpark(ProgramId(0));
                ledger.start(RequestId(0), B, next);
                assert_eq!(
                    asked,
                    ledger.sums(B).total(),
                    "{parked:?} {next:?} {other:?}"
                );
            }
        }
    }

    #[test]
    fn idle_programs_come_by_rank() {
        let mut ledger = Ledger::new();
        ledger.park(ProgramId(0), B, plain(30), 3);
        ledger.park(ProgramId(1), B, plain(10), 2);
        ledger.park(ProgramId(0), B, plain(5), 1);
        let order: Vec<_> = ledger.idle(B).collect();
        assert_eq!(order, [ProgramId(0), ProgramId(1)]);
        assert_eq!(ledger.idle(B).next_back(), Some(ProgramId(1)));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "P8: the ledger drifted")]
    fn a_sum_that_drifts_is_caught() {
        let mut ledger = Ledger::new();
        ledger.park(ProgramId(0), B, plain(30), 0);
        ledger.pages[0].sums.idle += Tokens(1);
        ledger.unpark(ProgramId(0));
    }

    #[test]
    fn a_footprint_smaller_than_its_prefix_has_no_private_part() {
        let mut ledger = Ledger::new();
        ledger.start(RequestId(0), B, sharing(20));
        assert_eq!(ledger.sums(B).total(), Tokens(100));
        ledger.finish(RequestId(0));
        assert_eq!(ledger.sums(B).total(), Tokens::ZERO);
    }
}

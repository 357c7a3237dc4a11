//! What the stories of `tests/thunder_defects/` cannot see: the order of pauses, and sums against a recount.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::books::Program;
use super::*;

const PROGRAMS: u32 = 12;

struct Scene {
    policy: ThunderAgent,
    now: Time,
    out: Decisions,
    /// Requests in flight or held; each program has at most two, numbered after it.
    live: Vec<u32>,
}

impl Scene {
    fn new(capacity: u64) -> Self {
        let mut scene = Self {
            policy: ThunderAgent::new(Config::default()),
            now: Time::ZERO,
            out: Decisions::new(),
            live: Vec::new(),
        };
        scene.up(0, capacity);
        scene
    }

    fn tell(&mut self, event: &Event) {
        self.policy.handle(self.now, event, &mut self.out);
        for decision in self.out.drain() {
            if let super::super::Decision::Reject { request, .. } = decision {
                self.live.retain(|live| *live != request.0);
            }
        }
        self.check_sums();
    }

    fn up(&mut self, backend: u16, capacity: u64) {
        self.tell(&Event::BackendUp {
            backend: BackendId(backend),
            kv_capacity: Some(Tokens(capacity)),
        });
    }

    fn arrive(&mut self, request: u32, prompt: u64) {
        self.live.push(request);
        self.tell(&Event::Arrive(Arrival {
            request: RequestId(request),
            program: Some(ProgramId(request % PROGRAMS)),
            name_hash: 0,
            prompt: Tokens(prompt),
            shared: None,
            last_step: false,
        }));
    }

    fn finish(&mut self, request: u32, context: Option<u64>) {
        self.live.retain(|live| *live != request);
        self.tell(&Event::Finish {
            request: RequestId(request),
            outcome: context.map_or(Outcome::Failed, |_| Outcome::Stop),
            usage: context.map(|context| Usage {
                prompt: Tokens(context),
                cached: None,
                output: Tokens::ZERO,
            }),
        });
    }

    fn paused(&self) -> Vec<u32> {
        let known = (0..PROGRAMS).map(ProgramId);
        let paused = known.filter(|id| self.policy.program(*id).paused);
        paused.map(|id| id.0).collect()
    }

    /// Law P8 for the sums that the ledger does not keep.
    fn check_sums(&self) {
        let books = &self.policy.books;
        for (backend, server) in (0..).map(BackendId).zip(&books.servers) {
            let programs = books.table.iter().map(|(_, program)| program);
            let here: Vec<&Program> = programs
                .filter(|p| p.active && p.home == Some(backend))
                .collect();
            assert_eq!(server.active as usize, here.len());
            let marked = here.iter().filter(|p| p.marked);
            assert_eq!(server.leaving, marked.clone().map(|p| p.tokens).sum());
            assert_eq!(server.marked.len(), marked.count());
            let idle = here.iter().filter(|p| p.in_flight == 0);
            let left = |p: &&&Program| p.tokens.as_f64() * books.left(self.now, p.idle_since);
            let fading: f64 = idle.map(|p| left(&p)).sum();
            let kept = server.fading * books.left(self.now, server.faded_at);
            assert!((kept - fading).abs() < 1e-3, "{kept} is not {fading}");
        }
    }
}

#[test]
fn the_smallest_idle_program_pauses_first_and_no_more_than_needed() {
    let mut scene = Scene::new(2_000);
    for (program, context) in [(1, 500), (2, 200), (3, 400)] {
        scene.arrive(program, context);
        scene.finish(program, Some(context));
    }
    scene.arrive(4, 300);
    assert_eq!(scene.paused(), [0; 0], "1400 tokens and four buffers fit");
    scene.finish(4, Some(500));
    assert_eq!(scene.paused(), [0; 0], "1600 and 400 are exactly full");
    scene.arrive(4, 501);
    assert_eq!(scene.paused(), [2]);
    scene.arrive(2, 200);
    assert_eq!(scene.policy.snapshot().held, 1);
}

#[test]
fn returning_programs_go_before_new_ones_and_small_before_large() {
    let mut scene = Scene::new(1_000);
    scene.arrive(1, 300);
    scene.finish(1, Some(300));
    scene.arrive(2, 10);
    scene.finish(2, Some(10));
    scene.arrive(2, 890);
    assert_eq!(scene.paused(), [1]);
    for (request, prompt) in [(3, 100), (1, 300), (4, 50)] {
        scene.arrive(request, prompt);
    }
    let mut order = Vec::new();
    for context in [500, 400, 10] {
        scene.finish(2, Some(context));
        let held = [1, 3, 4].into_iter().filter(|request| {
            let held = scene.policy.waiting.get(RequestId(*request));
            held.is_none()
        });
        order.push(held.collect::<Vec<_>>());
        scene.arrive(2, context);
    }
    assert_eq!(order, [vec![1], vec![1], vec![1, 3, 4]]);
}

#[test]
fn the_sums_equal_a_recount_through_random_days() {
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut scene = Scene::new(2_000);
        scene.up(1, 1_500);
        for _ in 0..400 {
            scene.now = scene.now + Duration::from_millis(rng.random_range(0..1_500));
            match rng.random_range(0..12) {
                0 => scene.tell(&Event::BackendDown {
                    backend: BackendId(rng.random_range(0..2)),
                }),
                1 | 2 => scene.up(rng.random_range(0..2), rng.random_range(0..2_500)),
                3 => scene.tell(&Event::Tick),
                4 => {
                    let program = rng.random_range(0..PROGRAMS);
                    if scene.live.iter().all(|live| live % PROGRAMS != program) {
                        let program = ProgramId(program);
                        scene.tell(&Event::Release { program });
                    }
                }
                5..9 => {
                    let request = rng.random_range(0..2 * PROGRAMS);
                    if !scene.live.contains(&request) {
                        scene.arrive(request, rng.random_range(1..900));
                    }
                }
                _ => {
                    if let Some(&request) = scene.live.first() {
                        let context = rng.random_range(1..900);
                        let context = rng.random_bool(0.9).then_some(context);
                        scene.finish(request, context);
                    }
                }
            }
        }
    }
}

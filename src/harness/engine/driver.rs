//! Runs the core in scaled real time: one task owns the engine, everybody else talks to it by messages.
//!
//! An iteration that starts at *t* and takes *d* is visible at *t + d*. Whenever the task wakes, it runs every
//! iteration that is due by the clock, each seeing exactly the requests that had arrived when it began; so the
//! result does not depend on how late or coarse the machine's timers are, until the machine is too slow
//! altogether ([`Snapshot::lag`]).
//!
//! A client watches a [`Progress`], of which only the newest value is kept. First and last tokens are published
//! at once, those between at most every [`FLUSH_EVERY`] (ten times that in a fast run): several tokens may share
//! a chunk, as they do in vLLM under load, and a slow reader costs no memory.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::core::hash::BuildPassThrough;
use super::core::{Engine, Finish, Request, RequestId, Stats, StepReport};
use super::histogram::Histogram;
use super::reply::Progress;
use crate::clock::Clock;
use crate::policy::Time;

/// Real time between two chunks of one stream, at least: less than an iteration at real speed. A run that is
/// sped up waits as many times longer, up to [`FLUSH_STRETCH`]: what it has to keep is the pace of requests.
const FLUSH_EVERY: Duration = Duration::from_millis(3);
/// See [`FLUSH_EVERY`].
const FLUSH_STRETCH: f64 = 10.0;
/// Iterations run before other tasks get a turn.
const BURST: u32 = 64;

/// What a handler asks of the engine. The channel is unbounded, its length is not: a request sends at most one
/// of each, and the number of requests is bounded ([`super::http`]).
#[derive(Debug)]
pub(super) enum Command {
    /// Queue the request at this time.
    Submit {
        at: Time,
        request: Request,
        progress: watch::Sender<Progress>,
    },
    /// The client has gone, or has all it wanted.
    Forget(RequestId),
}

/// What `/metrics` shows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) stats: Stats,
    pub(super) stopped: u64,
    pub(super) cut: u64,
    pub(super) ttft: Histogram,
    pub(super) e2e: Histogram,
    /// Engine time that the machine is behind by.
    pub(super) lag: Duration,
}

/// A request inside the engine, and who waits for it.
#[derive(Debug)]
struct Client {
    arrived: Time,
    now: Progress,
    /// `now` is newer than what was published.
    dirty: bool,
    progress: watch::Sender<Progress>,
}

/// The owner of the engine.
#[derive(Debug)]
pub(super) struct Driver {
    engine: Engine,
    clock: Clock,
    /// Where the engine is: the end of the last iteration that is visible.
    time: Time,
    /// End of the iteration under way, whose report is in `report`.
    busy_until: Option<Time>,
    report: StepReport,
    /// Requests still on their way through the HTTP server.
    arriving: BTreeMap<(Time, RequestId), (Request, watch::Sender<Progress>)>,
    clients: HashMap<RequestId, Client, BuildPassThrough>,
    dirty: Vec<RequestId>,
    flushed: Time,
    snapshot: Snapshot,
    published: watch::Sender<Snapshot>,
}

impl Driver {
    pub(super) fn new(engine: Engine, clock: Clock, published: watch::Sender<Snapshot>) -> Self {
        let snapshot = *published.borrow();
        Self {
            engine,
            clock,
            time: Time::ZERO,
            busy_until: None,
            report: StepReport::default(),
            arriving: BTreeMap::new(),
            clients: HashMap::default(),
            dirty: Vec::new(),
            flushed: Time::ZERO,
            snapshot,
            published,
        }
    }

    /// Runs until `stop`. Dropping the driver ends every open stream with finish reason `abort`.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        stop: impl Future<Output = ()>,
    ) {
        tokio::pin!(stop);
        loop {
            while let Ok(command) = commands.try_recv() {
                self.apply(command);
            }
            let now = self.clock.now();
            let caught_up = self.catch_up(now);
            self.publish(now);
            if !caught_up {
                tokio::select! {
                    biased;
                    () = &mut stop => return,
                    () = tokio::task::yield_now() => continue,
                }
            }
            let wake = self.wakeup().map(|at| self.clock.instant(at).into());
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut stop => return,
                command = commands.recv() => match command {
                    Some(command) => self.apply(command),
                    None => return,
                },
                () = sleep => {}
            }
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Submit {
                at,
                request,
                progress,
            } => {
                self.arriving.insert((at, request.id), (request, progress));
            }
            Command::Forget(id) => {
                if self.clients.remove(&id).is_some() {
                    self.engine.abort(id);
                } else {
                    self.arriving.retain(|(_, arriving), _| *arriving != id);
                }
            }
        }
    }

    /// Runs what is due at `now`; `false` if that was more than one turn may take.
    fn catch_up(&mut self, now: Time) -> bool {
        for _ in 0..BURST {
            if let Some(end) = self.busy_until {
                if end > now {
                    return true;
                }
                self.time = end;
                self.busy_until = None;
                self.deliver();
            }
            if self.engine.is_idle() {
                match self.arriving.first_key_value() {
                    Some(((at, _), _)) if *at <= now => self.time = self.time.max(*at),
                    _ => return true,
                }
            }
            self.admit();
            self.engine.step(&mut self.report);
            self.busy_until = Some(self.time + self.report.duration);
        }
        false
    }

    /// Submits what has arrived by the engine's time.
    fn admit(&mut self) {
        while let Some(entry) = self.arriving.first_entry() {
            let (arrived, id) = *entry.key();
            if arrived > self.time {
                return;
            }
            let (request, progress) = entry.remove();
            if self.engine.submit(arrived, request).is_err() {
                // The handlers check every limit first; a request refused here ends as aborted.
                continue;
            }
            let client = Client {
                arrived,
                now: Progress::default(),
                dirty: false,
                progress,
            };
            self.clients.insert(id, client);
        }
    }

    /// Hands out the tokens of the iteration that has just ended.
    fn deliver(&mut self) {
        for emitted in &self.report.emitted {
            let Some(client) = self.clients.get_mut(&emitted.request) else {
                continue;
            };
            client.now = Progress {
                output: emitted.output,
                cached: emitted.cached,
                finish: emitted.finish,
            };
            let age = self.time.since(client.arrived);
            if emitted.output == 1 {
                self.snapshot.ttft.observe(age);
                client.progress.send_replace(client.now);
            } else if !client.dirty {
                client.dirty = true;
                self.dirty.push(emitted.request);
            }
            let Some(finish) = emitted.finish else {
                continue;
            };
            self.snapshot.e2e.observe(age);
            match finish {
                Finish::Stop => self.snapshot.stopped += 1,
                Finish::Length => self.snapshot.cut += 1,
            }
            client.progress.send_replace(client.now);
            self.clients.remove(&emitted.request);
        }
    }

    fn publish(&mut self, now: Time) {
        let pause = FLUSH_EVERY.mul_f64(self.clock.scale().clamp(1.0, FLUSH_STRETCH));
        if self.clock.machine(now.since(self.flushed)) >= pause {
            self.flushed = now;
            for id in self.dirty.drain(..) {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.dirty = false;
                    client.progress.send_replace(client.now);
                }
            }
        }
        self.snapshot.stats = self.engine.stats();
        self.snapshot.lag = match self.busy_until {
            Some(end) => now.since(end),
            None => Duration::ZERO,
        };
        let snapshot = &self.snapshot;
        self.published
            .send_modify(|shown| shown.clone_from(snapshot));
    }

    /// When there is something to do again, unless a command comes first.
    fn wakeup(&self) -> Option<Time> {
        let arrival = self.arriving.first_key_value().map(|((at, _), _)| *at);
        self.busy_until.or(arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::super::core::cost::CPU_TINY;
    use super::super::core::{Config, Lookups, Output, Scheduling};
    use super::*;

    fn config() -> Config {
        Config {
            blocks: 40,
            block_size: 4,
            max_num_seqs: 4,
            max_num_batched_tokens: 32,
            scheduling: Scheduling::Fcfs,
            lookups: Lookups::Admission,
            cost: CPU_TINY,
        }
    }

    fn driver() -> Driver {
        let (published, _) = watch::channel(Snapshot::default());
        Driver::new(Engine::new(config()), Clock::real(), published)
    }

    fn submit(driver: &mut Driver, id: u64, at_ms: u64, tokens: u32) -> watch::Receiver<Progress> {
        let mut prompt = config().chain(b"");
        prompt.extend((0..tokens).map(|token| token + 1000 * tokens));
        let (progress, watched) = watch::channel(Progress::default());
        driver.apply(Command::Submit {
            at: Time::from_millis(at_ms),
            request: Request {
                id: RequestId(id),
                prompt,
                priority: 0,
                output: Output::filler(10, Finish::Length, id),
            },
            progress,
        });
        watched
    }

    /// Wakes every `wake_ms` up to two seconds; when each request ended and what the engine counted.
    fn play(wake_ms: u64) -> (Duration, Stats) {
        let mut driver = driver();
        for id in 0..20 {
            drop(submit(
                &mut driver,
                id,
                7 * id,
                20 + 4 * u32::try_from(id % 5).unwrap(),
            ));
        }
        for wake in 1..=2000 / wake_ms {
            while !driver.catch_up(Time::from_millis(wake * wake_ms)) {}
        }
        (driver.time.since(Time::ZERO), driver.engine.stats())
    }

    #[test]
    fn how_often_the_task_wakes_changes_nothing() {
        assert_eq!(play(1), play(2000));
        assert_eq!(play(1).1.generation_tokens, 200);
    }

    #[test]
    fn nothing_is_visible_before_its_iteration_ends() {
        let mut driver = driver();
        let watched = submit(&mut driver, 1, 10, 8);
        assert!(driver.catch_up(Time::from_millis(10)));
        assert_eq!(watched.borrow().output, 0);
        let end = driver.busy_until.unwrap();
        assert!(driver.catch_up(Time::from_nanos(end.as_nanos() - 1)));
        assert_eq!(watched.borrow().output, 0);
        assert!(driver.catch_up(end));
        assert_eq!(watched.borrow().output, 1);
    }

    #[test]
    fn a_request_forgotten_on_its_way_never_reaches_the_engine() {
        let mut driver = driver();
        let watched = submit(&mut driver, 1, 10, 8);
        driver.apply(Command::Forget(RequestId(1)));
        assert!(driver.catch_up(Time::from_millis(100)));
        assert_eq!(driver.engine.stats().prefix_queries, 0);
        assert!(watched.has_changed().is_err(), "its sender is gone");
    }
}

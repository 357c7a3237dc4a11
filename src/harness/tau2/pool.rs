//! The worker processes and what they play: K processes, at most C simulations in flight, each failure with a cause.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::event::{BUSY_SHARE, Cause, Event, Failure, Finish, Moment, What};
use super::plan::{Attempt, Next, Schedule};
use super::remote::Control;
use super::settings::Settings;
use super::wire::{Opening, Order, Said, Word};
use super::worker::{Heard, Source, Worker, write_scripts};
use crate::clock::Clock;
use crate::policy::Time;

/// A good size for the channel of events; a full one holds the pool up.
pub const EVENTS: usize = 4_096;
/// Lines of workers that wait to be read; at the bound the workers wait.
const INBOX: usize = 1_024;
/// How often patience is looked at, at least.
const TICK: Duration = Duration::from_secs(1);
/// Whole simulations, one file each, in the run directory.
const SIMULATIONS: &str = "outputs/simulations";
/// Time for telling the gate that a program is over.
const RELEASE: Duration = Duration::from_secs(5);

/// Plays a schedule to its end. Every event is sent as it happens; every attempt that was started is finished with one
/// [`What::Finished`], however the pool ends.
///
/// # Errors
/// When no worker can be started or none is left, or nobody takes the events.
pub async fn play(
    settings: Settings,
    schedule: Schedule,
    control: Control,
    events: mpsc::Sender<Event>,
) -> anyhow::Result<()> {
    let mut pool = Pool::new(settings, schedule, events)?;
    let played = pool.run(control).await;
    let closed = pool.close().await;
    played.and(closed)
}

/// A worker's place.
#[derive(Debug)]
struct Seat {
    /// `None` when its worker died and no restart was left.
    worker: Option<Worker>,
    generation: u32,
    ready: bool,
    started: Time,
    /// When the last line came.
    heard: Time,
    /// The last beat: CPU seconds, and when.
    beat: Option<(f64, f64)>,
    /// Simulations that it plays.
    playing: usize,
}

/// A simulation in flight.
#[derive(Debug)]
struct Running {
    attempt: Arc<Attempt>,
    seat: usize,
    started: Time,
    heard: Time,
    steps: u32,
    llm_calls: u32,
}

/// What came of an attempt.
#[derive(Debug)]
struct Outcome {
    reward: Option<f64>,
    termination: Option<String>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Pool {
    settings: Settings,
    schedule: Schedule,
    events: mpsc::Sender<Event>,
    clock: Clock,
    script: PathBuf,
    domains: Vec<String>,
    http: reqwest::Client,
    seats: Vec<Seat>,
    inbox: mpsc::Receiver<(Source, Heard)>,
    mouth: mpsc::Sender<(Source, Heard)>,
    /// By program.
    running: BTreeMap<String, Running>,
    /// Programs that the gate is being told of.
    releases: JoinSet<Option<Event>>,
    restarts_left: u32,
    /// When arrivals began to count.
    began: Option<Time>,
    /// When to look again for something to start.
    wake: Option<Time>,
    draining: bool,
}

impl Pool {
    fn new(
        mut settings: Settings,
        schedule: Schedule,
        events: mpsc::Sender<Event>,
    ) -> anyhow::Result<Self> {
        // Workers have a folder of their own.
        settings.dir = std::path::absolute(&settings.dir)?;
        let script = match &settings.script {
            Some(script) => script.clone(),
            None => write_scripts(&settings.dir)?,
        };
        let saved = settings.dir.join(SIMULATIONS);
        std::fs::create_dir_all(&saved)
            .with_context(|| format!("cannot make {}", saved.display()))?;
        let (mouth, inbox) = mpsc::channel(INBOX);
        let places = schedule.concurrency().min(schedule.left());
        let workers = places.div_ceil(settings.per_worker.max(1));
        let clock = Clock::real();
        let mut pool = Self {
            domains: schedule.domains(),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(RELEASE)
                .build()?,
            restarts_left: settings.restarts,
            settings,
            schedule,
            events,
            clock,
            script,
            seats: Vec::new(),
            inbox,
            mouth,
            running: BTreeMap::new(),
            releases: JoinSet::new(),
            began: None,
            wake: None,
            draining: false,
        };
        for seat in 0..workers {
            pool.seats.push(Seat::empty(clock.now()));
            pool.seats[seat].worker = Some(pool.start_worker(seat)?);
        }
        Ok(pool)
    }

    fn start_worker(&self, seat: usize) -> anyhow::Result<Worker> {
        let generation = self.seats[seat].generation;
        let source = Source { seat, generation };
        Worker::start(&self.settings, &self.script, source, self.mouth.clone())
    }

    async fn run(&mut self, mut control: Control) -> anyhow::Result<()> {
        self.greet().await;
        while self.start_what_may().await? {
            let patience = self.settings.patience;
            let tick = patience.worker.min(patience.simulation).min(TICK);
            let tick = self.clock.now() + tick;
            let wake = self.wake.map_or(tick, |wake| wake.min(tick));
            tokio::select! {
                heard = self.inbox.recv() => {
                    if let Some((source, heard)) = heard {
                        self.hear(source, heard).await?;
                    }
                }
                Some(event) = self.releases.join_next() => self.released(event).await?,
                Some((job, failure)) = control.given_up.recv() => {
                    self.give_up(&job, failure.cause, failure.error).await?;
                }
                () = control.kill.cancelled() => break,
                () = control.drain.cancelled(), if !self.draining => {
                    self.draining = true;
                    self.schedule.stop();
                }
                () = tokio::time::sleep_until(self.clock.instant(wake).into()) => {
                    self.look_at_the_time().await?;
                }
            }
        }
        Ok(())
    }

    /// Gives every worker its settings.
    async fn greet(&mut self) {
        for seat in 0..self.seats.len() {
            self.greet_one(seat).await;
        }
    }

    async fn greet_one(&mut self, seat: usize) {
        let opening = Opening::new(&self.settings, &self.domains);
        if let Some(worker) = &mut self.seats[seat].worker {
            // One that is gone already is heard to close.
            let _gone = worker.tell(&opening).await;
        }
    }

    /// Hands out what may start; returns whether there is something to wait for.
    async fn start_what_may(&mut self) -> anyhow::Result<bool> {
        self.wake = None;
        let alive = self.seats.iter().filter(|seat| seat.worker.is_some());
        let alive = alive.count();
        if self.began.is_none() && !self.draining {
            if self
                .seats
                .iter()
                .any(|seat| seat.worker.is_some() && !seat.ready)
            {
                return Ok(true);
            }
            self.began = Some(self.clock.now());
            self.tell(None, None, What::Began { workers: alive })
                .await?;
        }
        let began = self.began.unwrap_or_else(|| self.clock.now());
        let share = self.schedule.concurrency().div_ceil(alive.max(1));
        loop {
            let free = self.seats.iter().enumerate();
            let free = free.filter(|(_, seat)| seat.ready && seat.playing < share);
            let seat = free.min_by_key(|(_, seat)| seat.playing).map(|(n, _)| n);
            if seat.is_none() && !self.draining && self.schedule.left() > 0 {
                return Ok(true);
            }
            let now = self.clock.now();
            match (self.schedule.next(now.since(began).as_secs_f64()), seat) {
                (Next::Play(attempt), Some(seat)) => self.start(attempt, seat, now).await?,
                (Next::At(at_s), _) => {
                    self.wake = Some(began + Duration::from_secs_f64(at_s));
                    return Ok(true);
                }
                (Next::Over, _) => return Ok(false),
                (Next::Wait | Next::Play(_), _) => return Ok(true),
            }
        }
    }

    async fn start(&mut self, attempt: Attempt, seat: usize, now: Time) -> anyhow::Result<()> {
        let attempt = Arc::new(attempt);
        let unit = &attempt.unit;
        let save = format!("{}.json", unit.file_stem());
        let save = self.settings.dir.join(SIMULATIONS).join(save);
        let order = Order::Play {
            job: &attempt.job_id,
            domain: &unit.domain,
            task_id: &unit.task_id,
            trial: unit.trial,
            seed: unit.seed,
            save: &save.display().to_string(),
        };
        if let Some(worker) = &mut self.seats[seat].worker {
            // One that is gone is heard to close, and the attempt fails with it.
            let _gone = worker.tell(&order).await;
        }
        self.seats[seat].playing += 1;
        let running = Running {
            attempt: Arc::clone(&attempt),
            seat,
            started: now,
            heard: now,
            steps: 0,
            llm_calls: 0,
        };
        self.running.insert(attempt.job_id.clone(), running);
        self.tell(Some(seat), Some(attempt), What::Started).await
    }

    async fn hear(&mut self, source: Source, heard: Heard) -> anyhow::Result<()> {
        let Source { seat, generation } = source;
        if self.seats[seat].generation != generation {
            return Ok(());
        }
        self.seats[seat].heard = self.clock.now();
        match heard {
            Heard::Closed => self.died(seat, "").await,
            Heard::Garbled(line) => {
                let error = format!("it said {line:?}, which is no line of ours; ");
                self.died(seat, &error).await
            }
            Heard::Said(said) => self.said(seat, said).await,
        }
    }

    async fn said(&mut self, seat: usize, said: Said) -> anyhow::Result<()> {
        let job = said.job.unwrap_or_default();
        match said.word {
            Word::Beat { cpu_s } => self.beat(seat, cpu_s, said.at).await,
            Word::Ready { pid } => {
                let now = self.clock.now();
                let place = &mut self.seats[seat];
                place.ready = true;
                // Loading tau2 took a whole core, and distorted nothing.
                place.beat = None;
                let start_s = now.since(place.started).as_secs_f64();
                let what = What::WorkerReady { pid, start_s };
                self.tell(Some(seat), None, what).await
            }
            Word::Result {
                reward,
                termination,
                cause,
                error,
            } => {
                let failure = cause.map(|cause| Failure {
                    cause,
                    error: error.unwrap_or_default(),
                });
                let outcome = Outcome {
                    reward,
                    termination,
                    failure,
                };
                self.finish(&job, outcome, said.at).await
            }
            Word::Moment(moment) => self.moment(seat, &job, moment, said.at).await,
        }
    }

    async fn beat(&mut self, seat: usize, cpu_s: f64, at_s: f64) -> anyhow::Result<()> {
        let place = &mut self.seats[seat];
        let Some((cpu_before, before)) = place.beat.replace((cpu_s, at_s)) else {
            return Ok(());
        };
        if !place.ready || at_s <= before {
            return Ok(());
        }
        let core_share = (cpu_s - cpu_before) / (at_s - before);
        let what = What::Cpu {
            cpu_s,
            core_share,
            busy: core_share > BUSY_SHARE,
            simulations: place.playing,
        };
        self.tell(Some(seat), None, what).await
    }

    async fn moment(
        &mut self,
        seat: usize,
        job: &str,
        moment: Moment,
        at_s: f64,
    ) -> anyhow::Result<()> {
        if matches!(moment, Moment::Played { .. }) {
            self.release(job);
        }
        // One that was given up goes on until its next step.
        let Some(running) = self.running.get_mut(job) else {
            return Ok(());
        };
        running.heard = self.clock.now();
        match &moment {
            Moment::Llm { .. } => running.llm_calls += 1,
            Moment::Step { .. } => running.steps += 1,
            Moment::Tool { .. } | Moment::Played { .. } => {}
        }
        let attempt = Some(Arc::clone(&running.attempt));
        self.tell_at(at_s, Some(seat), attempt, What::Moment(moment))
            .await
    }

    /// An attempt is over.
    async fn finish(&mut self, job: &str, outcome: Outcome, at_s: f64) -> anyhow::Result<()> {
        let Some(running) = self.running.remove(job) else {
            return Ok(());
        };
        let seat = running.seat;
        self.seats[seat].playing = self.seats[seat].playing.saturating_sub(1);
        let cause = outcome.failure.as_ref().map(|failure| failure.cause);
        let duration = self.clock.now().since(running.started);
        let finish = Finish {
            reward: outcome.reward,
            termination: outcome.termination,
            steps: running.steps,
            llm_calls: running.llm_calls,
            duration_ms: duration.as_secs_f64() * 1e3,
            last_word: self.schedule.ended(&running.attempt, cause),
            failure: outcome.failure,
        };
        self.tell_at(
            at_s,
            Some(seat),
            Some(running.attempt),
            What::Finished(finish),
        )
        .await
    }

    /// An attempt is over without a word of its worker.
    async fn fail(&mut self, job: &str, cause: Cause, error: String) -> anyhow::Result<()> {
        self.release(job);
        let outcome = Outcome {
            reward: None,
            termination: None,
            failure: Some(Failure { cause, error }),
        };
        let now_s = self.clock.unix(self.clock.now());
        self.finish(job, outcome, now_s).await
    }

    /// Fails a running simulation and tells its worker to end it at its next step.
    async fn give_up(&mut self, job: &str, cause: Cause, error: String) -> anyhow::Result<()> {
        let Some(running) = self.running.get(job) else {
            return Ok(());
        };
        if let Some(worker) = &mut self.seats[running.seat].worker {
            // One that is gone plays it no longer.
            let _gone = worker.tell(&Order::GiveUp(job)).await;
        }
        self.fail(job, cause, error).await
    }

    /// Ends what was not heard of for too long.
    async fn look_at_the_time(&mut self) -> anyhow::Result<()> {
        let now = self.clock.now();
        let patience = self.settings.patience;
        let silent = |running: &Running| now.since(running.heard) > patience.simulation;
        let silent = self.running.iter().filter(|(_, running)| silent(running));
        let silent: Vec<String> = silent.map(|(job, _)| job.clone()).collect();
        for job in silent {
            let error = format!("no step for {:?}", patience.simulation);
            self.give_up(&job, Cause::Silent, error).await?;
        }
        for seat in 0..self.seats.len() {
            let place = &self.seats[seat];
            if place.worker.is_none() {
                continue;
            }
            if !place.ready && now.since(place.started) > patience.start {
                let error = format!("it was not ready after {:?}; ", patience.start);
                self.died(seat, &error).await?;
            } else if place.ready && now.since(place.heard) > patience.worker {
                let error = format!("it said nothing for {:?}; ", patience.worker);
                self.died(seat, &error).await?;
            }
        }
        Ok(())
    }

    /// A worker is gone, or is to be: its simulations fail, and another takes its place while restarts are left.
    async fn died(&mut self, seat: usize, why: &str) -> anyhow::Result<()> {
        let Some(worker) = self.seats[seat].worker.take() else {
            return Ok(());
        };
        let error = format!("worker {seat}: {why}{}", worker.kill().await);
        let generation = self.seats[seat].generation + 1;
        self.seats[seat] = Seat {
            generation,
            ..Seat::empty(self.clock.now())
        };
        let playing = self.running.iter().filter(|(_, r)| r.seat == seat);
        let playing: Vec<String> = playing.map(|(job, _)| job.clone()).collect();
        let restarted = self.restarts_left > 0 && !self.draining;
        let what = What::WorkerDied {
            error: error.clone(),
            simulations: playing.len(),
            restarted,
        };
        self.tell(Some(seat), None, what).await?;
        for job in playing {
            self.fail(&job, Cause::WorkerDied, error.clone()).await?;
        }
        if restarted {
            self.restarts_left -= 1;
            self.seats[seat].worker = Some(self.start_worker(seat)?);
            self.greet_one(seat).await;
        }
        let none_left = self.seats.iter().all(|seat| seat.worker.is_none());
        if none_left && !self.draining && self.schedule.left() > 0 {
            bail!("no tau2 worker process is left; the last one was {error}");
        }
        Ok(())
    }

    /// Tells the gate that a program and its user's are over.
    fn release(&mut self, job: &str) {
        let Some(gate) = &self.settings.release_url else {
            return;
        };
        let url = format!("{}/programs/release", gate.trim_end_matches('/'));
        for program in [job.to_owned(), format!("{job}:user")] {
            let request = self.http.post(&url).json(&Release { job_id: &program });
            let clock = self.clock;
            self.releases.spawn(async move {
                let answer = request.send().await;
                let error = answer.and_then(reqwest::Response::error_for_status).err()?;
                Some(Event {
                    at_s: clock.unix(clock.now()),
                    worker: None,
                    attempt: None,
                    what: What::ReleaseFailed {
                        program,
                        error: error.to_string(),
                    },
                })
            });
        }
    }

    async fn released(
        &mut self,
        told: Result<Option<Event>, tokio::task::JoinError>,
    ) -> anyhow::Result<()> {
        match told? {
            Some(event) => self.send(event).await,
            None => Ok(()),
        }
    }

    /// Ends every process and every attempt that is still in flight.
    async fn close(mut self) -> anyhow::Result<()> {
        let patience = self.settings.patience.end;
        let workers = self.seats.iter_mut().filter_map(|seat| seat.worker.take());
        let ends: JoinSet<()> = workers.map(|worker| worker.end(patience)).collect();
        ends.join_all().await;
        let unheard: Vec<String> = self.running.keys().cloned().collect();
        for job in unheard {
            self.fail(&job, Cause::Stopped, "the run was stopped".to_owned())
                .await?;
        }
        while let Some(told) = self.releases.join_next().await {
            self.released(told).await?;
        }
        Ok(())
    }

    async fn tell(
        &self,
        worker: Option<usize>,
        attempt: Option<Arc<Attempt>>,
        what: What,
    ) -> anyhow::Result<()> {
        let now_s = self.clock.unix(self.clock.now());
        self.tell_at(now_s, worker, attempt, what).await
    }

    async fn tell_at(
        &self,
        at_s: f64,
        worker: Option<usize>,
        attempt: Option<Arc<Attempt>>,
        what: What,
    ) -> anyhow::Result<()> {
        self.send(Event {
            at_s,
            worker,
            attempt,
            what,
        })
        .await
    }

    async fn send(&self, event: Event) -> anyhow::Result<()> {
        let sent = self.events.send(event).await;
        sent.map_err(|_| anyhow::anyhow!("nobody takes the events: the run cannot be recorded"))
    }
}

/// What the gate is told of a program that is over.
#[derive(Serialize)]
struct Release<'a> {
    job_id: &'a str,
}

impl Seat {
    const fn empty(now: Time) -> Self {
        Self {
            worker: None,
            generation: 0,
            ready: false,
            started: now,
            heard: now,
            beat: None,
            playing: 0,
        }
    }
}

//! What the tests of tau2 share: a Python, settings, and a run whose events are written down.

use std::path::Path;

use jiff::tz::TimeZone;
use kvgate::harness::tau2::environment::Environment;
use kvgate::harness::tau2::event::Event;
use kvgate::harness::tau2::outputs::{Header, Outputs};
use kvgate::harness::tau2::plan::{Rules, Schedule, Workload};
use kvgate::harness::tau2::pool;
use kvgate::harness::tau2::remote::{self, Remote};
use kvgate::harness::tau2::settings::{Identity, Patience, Player, Secret, Settings};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub(crate) fn player(gate: &str) -> Player {
    let arguments = serde_json::json!({"temperature": 0.0, "timeout": 120, "num_retries": 0});
    Player {
        model: "standin".to_owned(),
        url: gate.to_owned(),
        key: Secret("none".to_owned()),
        arguments: arguments.as_object().cloned().unwrap_or_default(),
    }
}

/// Two simulations a worker, no restarts.
pub(crate) fn settings(environment: Environment, gate: &str, dir: &Path) -> Settings {
    Settings {
        environment,
        dir: dir.to_owned(),
        per_worker: 2,
        agent: player(gate),
        user: player(gate),
        identity: Identity::Explicit,
        release_url: Some(gate.to_owned()),
        max_steps: 200,
        max_errors: 10,
        patience: Patience::default(),
        script: None,
        restarts: 0,
    }
}

/// A run that is being played; every event is written down before it is looked at.
pub(crate) struct Run {
    pub(crate) remote: Remote,
    pub(crate) events: Vec<Event>,
    inbox: mpsc::Receiver<Event>,
    outputs: Outputs,
    playing: JoinHandle<anyhow::Result<()>>,
}

impl Run {
    pub(crate) fn start(settings: Settings, workload: &Workload, rules: Rules) -> Self {
        let units = workload.list(&settings.environment.catalogue);
        let units = units.expect("a plan");
        let header = Header {
            domains: workload.domains.clone(),
            trials: workload.trials,
            concurrency: rules.concurrency,
            data: settings.environment.data.clone(),
            zone: TimeZone::system(),
        };
        let outputs = Outputs::open(&settings.dir, header, &units).expect("outputs");
        let schedule = Schedule::new(units, rules, &outputs.past()).expect("a schedule");
        let (remote, control) = remote::control();
        let (sender, inbox) = mpsc::channel(pool::EVENTS);
        Self {
            remote,
            events: Vec::new(),
            inbox,
            outputs,
            playing: tokio::spawn(pool::play(settings, schedule, control, sender)),
        }
    }

    /// Goes on until something happens.
    pub(crate) async fn until(&mut self, is_it: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next().await.expect("it happens before the end");
            if is_it(&event) {
                return event;
            }
        }
    }

    /// Goes on to the end; returns all that happened, and how the pool ended.
    pub(crate) async fn end(mut self) -> (Vec<Event>, anyhow::Result<()>) {
        while self.next().await.is_some() {}
        let played = self.playing.await.expect("no panic");
        self.outputs.finish().expect("finished");
        (self.events, played)
    }

    /// Takes no more events; returns how the pool ended.
    pub(crate) async fn forget(self) -> anyhow::Result<()> {
        drop(self.inbox);
        self.playing.await.expect("no panic")
    }

    async fn next(&mut self) -> Option<Event> {
        let event = self.inbox.recv().await?;
        self.outputs.record(&event).expect("recorded");
        self.events.push(event.clone());
        Some(event)
    }
}

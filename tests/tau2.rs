//! The real tau2-bench, four simulations over its three domains, through `kvgate serve` in front of a stand-in model.
//!
//! The benchmark is installed once, as a user's run does it, into `target/tmp/cache`. Where there is no Python 3.10
//! the test says so and passes; with `KVGATE_REQUIRE_PYTHON=1`, as in CI, it fails instead.
#![expect(clippy::expect_used, reason = "a test may stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use jiff::tz::TimeZone;
use kvgate::harness::rundir::RunDir;
use kvgate::harness::tau2::environment::Environment;
use kvgate::harness::tau2::event::{Event, Moment, Role, What};
use kvgate::harness::tau2::outputs::{self, Header, Outputs};
use kvgate::harness::tau2::plan::{Rules, Schedule, Workload};
use kvgate::harness::tau2::pool;
use kvgate::harness::tau2::settings::{Identity, Patience, Player, Secret, Settings};
use rustix::process::{Pid, Signal, kill_process};

/// Where the benchmark's Python is looked for, as in the library.
const IS_NEW_ENOUGH: &str = "import sys; sys.exit(sys.version_info < (3, 10))";

/// A server that is killed when the test is over.
struct Server {
    child: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    /// Starts a command that says where it listens.
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let output = child.stdout.take().expect("its output is piped");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let said = |line: String| line.strip_prefix("listening on ").map(str::to_owned);
        let url = lines.find_map(said);
        Self {
            child,
            url: url.expect("the server says where it listens"),
        }
    }

    /// Asks it to end, so that it writes what it has.
    fn stop(mut self) {
        let id = i32::try_from(self.child.id()).expect("an id");
        let id = Pid::from_raw(id).expect("an id");
        kill_process(id, Signal::TERM).expect("it runs");
        self.child.wait().expect("it ends");
    }
}

fn there_is_a_python() -> bool {
    let asked = Command::new("python3").args(["-c", IS_NEW_ENOUGH]).status();
    let found = asked.is_ok_and(|status| status.success());
    let required = std::env::var_os("KVGATE_REQUIRE_PYTHON").is_some();
    assert!(found || !required, "no Python of 3.10 or later");
    if !found {
        println!("skipped: no Python of 3.10 or later");
    }
    found
}

fn player(gate: &str) -> Player {
    let arguments = serde_json::json!({"temperature": 0.0, "timeout": 120, "num_retries": 0});
    Player {
        model: "standin".to_owned(),
        url: gate.to_owned(),
        key: Secret("none".to_owned()),
        arguments: arguments.as_object().cloned().unwrap_or_default(),
    }
}

fn settings(environment: Environment, gate: &str, dir: &Path) -> Settings {
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

/// Plays and writes it down; returns what happened.
async fn play(settings: Settings, workload: &Workload, rules: Rules) -> Vec<Event> {
    let units = workload
        .list(&settings.environment.catalogue)
        .expect("a plan");
    let header = Header {
        domains: workload.domains.clone(),
        trials: workload.trials,
        concurrency: rules.concurrency,
        data: settings.environment.data.clone(),
        zone: TimeZone::system(),
    };
    let mut outputs = Outputs::open(&settings.dir, header, &units).expect("outputs");
    let schedule = Schedule::new(units, rules, &outputs.past()).expect("a schedule");
    let (_remote, control) = pool::control();
    let (sender, mut inbox) = tokio::sync::mpsc::channel(pool::EVENTS);
    let playing = tokio::spawn(pool::play(settings, schedule, control, sender));
    let mut events = Vec::new();
    while let Some(event) = inbox.recv().await {
        outputs.record(&event).expect("recorded");
        events.push(event);
    }
    playing.await.expect("no panic").expect("played");
    outputs.finish().expect("finished");
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_simulations_of_every_domain_are_played_through_the_gate_to_their_rewards() {
    if !there_is_a_python() {
        return;
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    let environment = Environment::install(&cache, &mut |line| println!("{line}")).expect("tau2");
    let temp = tempfile::tempdir().expect("a folder");
    let dir: PathBuf = temp.path().join("run");
    let standin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tau2/standin.py");
    let model = Server::start(Command::new(&environment.python).arg(standin));
    let mut serve = Command::new(env!("CARGO_BIN_EXE_kvgate"));
    serve.args(["serve", "--listen", "127.0.0.1:0", "--backend", &model.url]);
    let gate = Server::start(serve.arg("--run-dir").arg(&dir));
    let workload = Workload {
        units: Some(4),
        ..Workload::default()
    };
    let rules = Rules {
        concurrency: 4,
        retries: 0,
        ..Rules::default()
    };

    let events = play(settings(environment, &gate.url, &dir), &workload, rules).await;

    let programs = reqwest::get(format!("{}/programs", gate.url)).await;
    let programs = programs.expect("an answer").text().await.expect("a text");
    assert_eq!(programs, "{}", "every program was released");
    gate.stop();
    check_rewards(&dir);
    check_steps(&dir, &events);
}

fn check_rewards(dir: &Path) {
    let rewards = outputs::read_rewards(dir).expect("rewards");
    let domains: BTreeSet<&str> = rewards.iter().map(|r| r.unit.domain.as_str()).collect();
    assert_eq!(rewards.len(), 4, "{rewards:?}");
    assert_eq!(domains, BTreeSet::from(["airline", "retail", "telecom"]));
    for reward in &rewards {
        let finish = &reward.finish;
        assert_eq!(finish.failure, None, "{reward:?}");
        assert!(finish.reward.is_some() && finish.steps > 0, "{reward:?}");
        assert_eq!(finish.termination.as_deref(), Some("user_stop"));
        assert_eq!(reward.unit.seed, 626_729, "tau2's own seed of trial 0");
        let stem = reward.unit.file_stem();
        for folder in ["all_domains", "simulations"] {
            let file = dir.join(format!("outputs/{folder}/{stem}.json"));
            assert!(file.exists(), "{}", file.display());
        }
    }
    let metrics = dir.join("outputs/metrics_global.json");
    let metrics = fs::read_to_string(metrics).expect("the run's metrics");
    assert!(metrics.contains("\"ok\": 4"), "{metrics}");
}

/// What the gate recorded is what the clients saw: no request more or less, none failed, each of its program.
fn check_steps(dir: &Path, events: &[Event]) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut tools = 0;
    for event in events {
        match (&event.what, &event.attempt) {
            (What::Moment(Moment::Llm { role, error, .. }), Some(attempt)) => {
                assert_eq!(*error, None);
                let user = if *role == Role::User { ":user" } else { "" };
                *seen.entry(format!("{}{user}", attempt.job_id)).or_default() += 1;
            }
            (What::Moment(Moment::Tool { .. }), _) => tools += 1,
            (What::ReleaseFailed { .. } | What::WorkerDied { .. }, _) => panic!("{event:?}"),
            _ => {}
        }
    }
    assert!(tools > 0, "the agents called tools");
    assert_eq!(seen.len(), 8, "an agent and a customer in each: {seen:?}");
    let (steps, _) = RunDir::at(dir).steps().expect("the gate's steps");
    let mut recorded: BTreeMap<String, usize> = BTreeMap::new();
    for step in steps {
        assert_eq!(step.status, 200, "{step:?}");
        let program = step.program.expect("a program");
        *recorded.entry(program).or_default() += 1;
    }
    assert_eq!(recorded, seen);
}

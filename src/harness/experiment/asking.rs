//! What the preflight has to ask for an experiment: its options turned into addresses, keys, paths and servers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use super::engine::{Kind, Plan};
use super::oss;
use super::preflight::{
    Asked, CommandNeed, Disk, Endpoint, ForkNeed, GateNeed, GpuNeed, Interpreter, Key, PathNeed,
    Port,
};
use super::spec::Options;
use super::workload::Workload;
use crate::harness::child::own_executable;
use crate::harness::rundir::DIRECT;

/// Bytes that a task's records take: some 60 requests of half a kilobyte, and its whole conversation.
const TASK_BYTES: u64 = 500_000;
/// Bytes that a run takes whatever it plays: samples, logs, and the benchmark's installation.
const RUN_BYTES: u64 = 1_000_000_000;
/// Tasks where nobody knows how many.
const TASKS: u64 = 278;
/// Sockets for each program in flight: client to gate, gate to engine, and as much again for calls beside the agent's.
const FILES_PER_PROGRAM: u64 = 8;
/// Files that are open whatever is played.
const FILES: u64 = 256;

/// Everything to be asked before an experiment in `dir` begins.
pub fn of(options: &Options, workload: &Workload, engine: &Plan, dir: &Path) -> Asked {
    let most = options.rows().into_iter().max().unwrap_or(1) as u64;
    let tasks = options.workload.tasks.map_or(TASKS, |tasks| tasks as u64);
    let cells = options.places().len() as u64;
    Asked {
        ports: ports(options, engine),
        keys: keys(&options.routes),
        paths: paths(options),
        endpoints: endpoints(options, engine),
        disk: Some(Disk {
            path: dir.to_owned(),
            bytes: RUN_BYTES + cells * tasks * TASK_BYTES,
        }),
        open_files: FILES + most * FILES_PER_PROGRAM,
        gpu: (engine.kind() == Kind::Vllm).then(GpuNeed::default),
        commands: commands(options, engine),
        interpreter: interpreter(options, workload),
        tau2_checkout: options.workload.tau2_path.clone(),
        fork: fork(workload),
        login: engine.login(),
        gate: gate(options, workload, engine, dir),
    }
}

/// One for all gates, of which only policy and model differ.
fn gate(options: &Options, workload: &Workload, engine: &Plan, dir: &Path) -> Option<GateNeed> {
    let policy = options.policies().into_iter().find(|name| name != DIRECT)?;
    let model = engine.served_model().unwrap_or("model");
    Some(GateNeed {
        table: workload.gate_table(&options.gate, &options.routes, dir, model),
        policy,
        // Where the system does not say, nothing can be started either, and that is told.
        kvgate: own_executable().unwrap_or_else(|_| "kvgate".into()),
    })
}

fn ports(options: &Options, engine: &Plan) -> Vec<Port> {
    let port = |addr, what: &str, flag: &str| Port {
        addr,
        what: what.to_owned(),
        flag: flag.to_owned(),
    };
    let here = |number| SocketAddr::from((Ipv4Addr::LOCALHOST, number));
    let mut ports = Vec::new();
    let gated = options.policies().iter().any(|name| name != DIRECT);
    if let (true, Ok(addr)) = (gated, options.listen().parse()) {
        ports.push(port(addr, "the gate", "--listen"));
    }
    ports.extend(
        engine
            .port()
            .map(|number| port(here(number), "the engine", "--engine-port")),
    );
    let forwards = engine.forwarded_ports().into_iter();
    ports.extend(forwards.map(|number| port(here(number), "a tunnel", "--forward")));
    ports
}

/// The variables that routes take their keys from.
fn keys(routes: &toml::Table) -> Vec<Key> {
    let key = |(model, route): (&String, &toml::Value)| {
        Some(Key {
            variable: route.get("api_key_env")?.as_str()?.to_owned(),
            used_for: format!("the route of {model}"),
        })
    };
    routes.iter().filter_map(key).collect()
}

fn paths(options: &Options) -> Vec<PathNeed> {
    let model = options.engine.model_path.iter().map(|path| PathNeed {
        path: path.clone(),
        what: "the model".to_owned(),
        flag: "--model-path".to_owned(),
    });
    // `kvgate config` does not open them.
    let certificates = options.routes.iter().filter_map(|(model, route)| {
        Some(PathNeed {
            path: route.get("ca_file")?.as_str()?.into(),
            what: format!("the certificates of the route of {model}"),
            flag: "ca_file".to_owned(),
        })
    });
    model.chain(certificates).collect()
}

/// The engine that runs already, and the servers of routes. Those that a tunnel will lead to cannot answer yet.
fn endpoints(options: &Options, engine: &Plan) -> Vec<Endpoint> {
    let running = engine.running_url().map(|url| Endpoint {
        url: url.to_owned(),
        what: "the engine".to_owned(),
        model: engine.served_model().map(str::to_owned),
        key: None,
    });
    let forwarded = engine.forwarded_ports();
    let through_tunnel = |url: &str| {
        forwarded
            .iter()
            .any(|port| url.contains(&format!(":{port}/")) || url.ends_with(&format!(":{port}")))
    };
    let of_route = |(model, route): (&String, &toml::Value)| {
        let key = route
            .get("api_key_env")
            .and_then(|key| key.as_str())
            .map(str::to_owned);
        let urls = route.get("urls").and_then(|urls| urls.as_array()).cloned();
        let urls = urls.unwrap_or_default().into_iter();
        let urls = urls.filter_map(|url| url.as_str().map(str::to_owned));
        let ask = |url: String| Endpoint {
            url: url.trim_end_matches('/').trim_end_matches("/v1").to_owned(),
            what: format!("the route of {model}"),
            model: None,
            key: key.clone(),
        };
        urls.filter(|url| !through_tunnel(url))
            .map(ask)
            .collect::<Vec<_>>()
    };
    running
        .into_iter()
        .chain(options.routes.iter().flat_map(of_route))
        .collect()
}

fn commands(options: &Options, engine: &Plan) -> Vec<CommandNeed> {
    let mut commands = Vec::new();
    if engine.kind() == Kind::Ssh || !options.engine.forward.is_empty() {
        commands.push(CommandNeed {
            program: options
                .engine
                .ssh_program
                .clone()
                .unwrap_or_else(|| "ssh".into()),
            used_for: "the tunnel to the engine".to_owned(),
        });
    }
    commands
}

/// A Python that somebody else installed; our own is checked where it is installed.
fn interpreter(options: &Options, workload: &Workload) -> Option<Interpreter> {
    let given = &options.workload;
    let (python, imports, flag) = match workload {
        // With a checkout tau2 itself is loaded from there.
        Workload::Tau2(_) if given.tau2_path.is_some() => {
            (&given.tau2_python, &["litellm"][..], "--tau2-python")
        }
        Workload::Tau2(_) => (
            &given.tau2_python,
            &["tau2", "litellm"][..],
            "--tau2-python",
        ),
        Workload::Fork(_) => (&given.oss_python, &oss::MODULES[..], "--oss-python"),
        Workload::Recorded(_) => return None,
    };
    Some(Interpreter {
        python: python.clone()?,
        imports: imports.iter().copied().map(str::to_owned).collect(),
        flag: flag.to_owned(),
    })
}

fn fork(workload: &Workload) -> Option<ForkNeed> {
    let Workload::Fork(fork) = workload else {
        return None;
    };
    Some(ForkNeed {
        checkout: fork.checkout().to_owned(),
        domains: fork.domains().to_owned(),
    })
}

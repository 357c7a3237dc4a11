//! The questions of the preflight, one function each, and how they are asked at once.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use reqwest::{Client, Url};
use rustix::process::{Resource, getrlimit};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::clock::{self, Dated};
use super::{
    Asked, CommandNeed, Disk, Endpoint, Finding, ForkNeed, GpuNeed, Interpreter, Key, PathNeed,
    Port,
};
use super::{gate, login};
use crate::clock::Clock;
use crate::harness::experiment::{gpu, machine, oss};
use crate::harness::replay::client::Models;
use crate::harness::tau2::environment::check_upstream;

/// How long a server may take for one answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Names of models that are listed when the one that is needed is not among them.
const LISTED: usize = 5;

pub(super) async fn everything(asked: &Asked) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(asked.ports.iter().filter_map(port));
    findings.extend(asked.keys.iter().filter_map(key));
    findings.extend(asked.paths.iter().filter_map(path));
    findings.extend(asked.tau2_checkout.as_deref().and_then(tau2_checkout));
    findings.extend(asked.fork.iter().flat_map(fork));
    findings.extend(asked.disk.iter().filter_map(disk));
    findings.extend(open_files(asked.open_files));
    findings.extend(asked.commands.iter().filter_map(command));
    let (answers, gate, login, gpus, python) = tokio::join!(
        endpoints(&asked.endpoints),
        async {
            match &asked.gate {
                Some(need) => gate::check(need, &asked.keys).await,
                None => None,
            }
        },
        async {
            match &asked.login {
                Some(argv) => login::check(argv).await,
                None => None,
            }
        },
        async {
            match &asked.gpu {
                Some(need) => gpus(need).await,
                None => Vec::new(),
            }
        },
        async {
            match &asked.interpreter {
                Some(need) => interpreter(need).await,
                None => None,
            }
        },
    );
    let mut servers = Vec::new();
    for answer in answers {
        findings.extend(answer.finding);
        servers.extend(answer.dated);
    }
    findings.extend(gate);
    findings.extend(login);
    findings.extend(gpus);
    findings.extend(python);
    findings.extend(time(&servers));
    findings
}

fn port(need: &Port) -> Option<Finding> {
    let Port { addr, what, flag } = need;
    let error = TcpListener::bind(addr).err()?;
    let remedy = if error.kind() == io::ErrorKind::AddrInUse {
        format!(
            "see who listens there with `ss -lptn sport = :{}`, or choose another address with {flag}",
            addr.port()
        )
    } else {
        format!("choose another address with {flag}")
    };
    Some(Finding::error(
        format!("{what} on {addr}"),
        plain(&error),
        remedy,
    ))
}

/// What the system says, without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_lowercase()
}

fn key(need: &Key) -> Option<Finding> {
    let Key { variable, used_for } = need;
    let problem = match std::env::var_os(variable) {
        _ if need.is_set() => return None,
        Some(_) => "it is empty",
        None => "it is not set",
    };
    let remedy = format!("export it: it is the key for {used_for}");
    Some(Finding::error(format!("${variable}"), problem, remedy))
}

fn path(need: &PathNeed) -> Option<Finding> {
    let PathNeed { path, what, flag } = need;
    let opened = if path.is_dir() {
        std::fs::read_dir(path).map(drop)
    } else {
        File::open(path).map(drop)
    };
    let error = opened.err()?;
    let problem = format!("{}: {}", path.display(), plain(&error));
    Some(Finding::error(
        what,
        problem,
        format!("name the right one with {flag}"),
    ))
}

fn tau2_checkout(folder: &Path) -> Option<Finding> {
    let error = check_upstream(folder).err()?;
    Some(Finding::error(
        "the checkout of tau2-bench",
        format!("{error:#}"),
        "name the right one with --tau2-path",
    ))
}

fn fork(need: &ForkNeed) -> Vec<Finding> {
    let finding = |line| {
        Finding::error(
            "the fork's checkout",
            line,
            "name the right one with --oss-path",
        )
    };
    let lacks = oss::lacks(&need.checkout, &need.domains).into_iter();
    lacks.map(finding).collect()
}

fn disk(need: &Disk) -> Option<Finding> {
    let Disk { path, bytes } = need;
    let absolute = std::path::absolute(path).ok()?;
    let there = absolute.ancestors().find(|place| place.exists())?;
    let free = rustix::fs::statvfs(there).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let what = format!("disk of {}", path.display());
    match free {
        Ok(free) if free >= *bytes => None,
        Ok(free) => Some(Finding::error(
            what,
            format!(
                "{} MB are free and {} MB are needed",
                free / 1_000_000,
                bytes.div_ceil(1_000_000)
            ),
            "make room, or put the run on another disk",
        )),
        Err(error) => Some(Finding::warning(
            what,
            format!("its free room is unknown: {}", plain(&error.into())),
            "see to it that there is enough",
        )),
    }
}

fn open_files(needed: u64) -> Option<Finding> {
    // What may be had: the soft limit is raised to it.
    let most = getrlimit(Resource::Nofile).maximum?;
    (most < needed).then(|| {
        Finding::error(
            "open files",
            format!("{most} are allowed and {needed} are needed"),
            "raise the hard limit (`ulimit -Hn`, or LimitNOFILE of a service), or lower --concurrency",
        )
    })
}

fn command(need: &CommandNeed) -> Option<Finding> {
    let CommandNeed { program, used_for } = need;
    if machine::find(program).is_some() {
        return None;
    }
    let place = if program.components().count() > 1 {
        "it is no file that can be executed"
    } else {
        "it is not in PATH"
    };
    let remedy = format!("install it: it is needed for {used_for}");
    Some(Finding::error(program.display().to_string(), place, remedy))
}

async fn gpus(need: &GpuNeed) -> Vec<Finding> {
    match gpu::ask(&need.program).await {
        Ok(gpus) => free_gpus(need, &gpus),
        Err(error) => vec![Finding::error(
            "GPU",
            format!("{error:#}"),
            "install NVIDIA's driver, or choose another engine with --engine",
        )],
    }
}

/// What keeps the GPUs from being ours alone. Pure.
pub(super) fn free_gpus(need: &GpuNeed, gpus: &gpu::Gpus) -> Vec<Finding> {
    let mut findings = Vec::new();
    let wanted = |card: &&gpu::Gpu| need.devices.is_empty() || need.devices.contains(&card.index);
    let there: Vec<u32> = gpus.cards.iter().map(|card| card.index).collect();
    let missing = need.devices.iter().filter(|index| !there.contains(index));
    findings.extend(missing.map(|index| {
        Finding::error(
            format!("GPU {index}"),
            format!("there are only {there:?}"),
            "name one of those",
        )
    }));
    if there.is_empty() && need.devices.is_empty() {
        findings.push(Finding::error(
            "GPU",
            "there is none",
            "choose another engine with --engine",
        ));
    }
    for card in gpus.cards.iter().filter(wanted) {
        let what = format!("GPU {} ({})", card.index, card.name);
        let tenants = gpus
            .tenants
            .iter()
            .filter(|tenant| tenant.uuid == card.uuid);
        findings.extend(tenants.map(|tenant| {
            let held = tenant
                .used_mib
                .map_or_else(String::new, |mib| format!(" with {mib} MiB"));
            let problem = format!(
                "process {} ({}) computes there{held}",
                tenant.pid, tenant.name
            );
            Finding::error(
                &what,
                problem,
                "end it, or choose other GPUs with CUDA_VISIBLE_DEVICES",
            )
        }));
        if card.free_mib < need.free_mib {
            findings.push(Finding::error(
                &what,
                format!("{} MiB are free and {} MiB are needed", card.free_mib, need.free_mib),
                "wait until memory of an engine that ended is given back, or lower what the engine takes",
            ));
        }
    }
    findings
}

/// Prints the names that cannot be imported, without importing them.
const IMPORTABLE: &str = "import importlib.util as u, sys\n\
    print(' '.join(n for n in sys.argv[1:] if u.find_spec(n) is None))";

async fn interpreter(need: &Interpreter) -> Option<Finding> {
    let Interpreter {
        python,
        imports,
        flag,
    } = need;
    let mut args = vec![OsStr::new("-c"), OsStr::new(IMPORTABLE)];
    args.extend(imports.iter().map(OsStr::new));
    let what = python.display().to_string();
    let remedy = format!("name the right Python with {flag}");
    match machine::output(python, &args, None).await {
        Ok(missing) if missing.is_empty() => None,
        Ok(missing) => Some(Finding::error(
            what,
            format!("it lacks {missing}"),
            format!("install them, or {remedy}"),
        )),
        Err(error) => Some(Finding::error(what, format!("{error:#}"), remedy)),
    }
}

struct Answer {
    finding: Option<Finding>,
    dated: Option<Dated>,
}

async fn endpoints(needs: &[Endpoint]) -> Vec<Answer> {
    let built = Client::builder().no_proxy().timeout(ANSWER).build();
    let Ok(http) = built else {
        return Vec::new();
    };
    join_all(needs.iter().map(|need| endpoint(&http, need))).await
}

/// What `GET /health` and `GET /v1/models` gave.
struct Heard {
    healthy: bool,
    /// The models that are served, or why they are not known.
    models: Result<Vec<String>, String>,
    /// It is there, and wants a key.
    locked: bool,
    date: Option<i64>,
}

async fn endpoint(http: &Client, need: &Endpoint) -> Answer {
    let url = Url::parse(&need.url).ok();
    if let Some(url) = url.filter(|url| url.scheme() == "https") {
        return Answer {
            finding: Some(encrypted(need, &url).await),
            dated: None,
        };
    }
    let heard = hear(http, need).await;
    Answer {
        dated: heard.date.map(|unix_s| Dated {
            what: need.what.clone(),
            unix_s,
        }),
        finding: judge(need, heard),
    }
}

/// TLS is spoken by the gate alone, so no more is asked than whether somebody listens.
async fn encrypted(need: &Endpoint, url: &Url) -> Finding {
    let what = format!("{} at {}", need.what, need.url);
    let remedy = format!("see that `curl {}/v1/models` answers", need.url);
    // An IPv6 address stands in brackets in a URL.
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = url.port_or_known_default().unwrap_or_default();
    let opened = timeout(ANSWER, TcpStream::connect((host, port))).await;
    match opened.map_err(|_| format!("no connection within {ANSWER:?}")) {
        Ok(Ok(_)) => Finding::warning(
            what,
            "it takes connections; its certificate, key and models are not asked for over https",
            remedy,
        ),
        Ok(Err(error)) => Finding::error(what, plain(&error), remedy),
        Err(problem) => Finding::error(what, problem, remedy),
    }
}

async fn hear(http: &Client, need: &Endpoint) -> Heard {
    let url = need.url.trim_end_matches('/').trim_end_matches("/v1");
    let key = need
        .key
        .as_ref()
        .and_then(|variable| std::env::var(variable).ok());
    let health = http.get(format!("{url}/health")).send();
    let mut models = http.get(format!("{url}/v1/models"));
    if let Some(key) = key {
        models = models.bearer_auth(key);
    }
    let (health, models) = tokio::join!(health, models.send());
    let date_of =
        |response: &reqwest::Response| clock::date(response.headers().get("date")?.to_str().ok()?);
    let date = [&health, &models].into_iter().flatten().find_map(date_of);
    let status = models.as_ref().map(reqwest::Response::status).ok();
    Heard {
        healthy: health.is_ok_and(|response| response.status().is_success()),
        models: names(models).await,
        locked: status.is_some_and(|status| matches!(status.as_u16(), 401 | 403)),
        date,
    }
}

async fn names(response: reqwest::Result<reqwest::Response>) -> Result<Vec<String>, String> {
    let response = response.map_err(|error| root(&error))?;
    if !response.status().is_success() {
        return Err(format!("/v1/models answers {}", response.status()));
    }
    let models: Models = response
        .json()
        .await
        .map_err(|error| format!("/v1/models: {}", root(&error)))?;
    Ok(models.data.into_iter().map(|model| model.id).collect())
}

/// The cause at the bottom of an error.
fn root(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {ANSWER:?}");
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn judge(need: &Endpoint, heard: Heard) -> Option<Finding> {
    let Endpoint {
        url, what, model, ..
    } = need;
    let what = format!("{what} at {url}");
    match (heard.models, model) {
        (Ok(served), Some(model)) if !served.contains(model) => {
            let shown: Vec<&str> = served.iter().take(LISTED).map(String::as_str).collect();
            Some(Finding::error(
                what,
                format!("it does not serve {model:?} but {shown:?}"),
                "name the model as the server does",
            ))
        }
        (Ok(_), _) => None,
        (Err(problem), Some(_)) if heard.locked => Some(Finding::error(
            what,
            problem,
            "export the right key: it is what opens this server",
        )),
        (Err(_), None) if heard.healthy || heard.locked => None,
        (Err(problem), _) => Some(Finding::error(
            what,
            problem,
            "start it, or its tunnel, and see that `curl URL/v1/models` answers",
        )),
    }
}

fn time(servers: &[Dated]) -> Vec<Finding> {
    let clock = Clock::real();
    #[expect(clippy::cast_possible_truncation, reason = "Unix seconds")]
    let now_s = clock.unix(clock.now()).floor() as i64;
    let mut findings = clock::clock(now_s, servers);
    let variable = std::env::var("TZ").ok();
    let zone = clock::zone(variable.as_deref());
    let now = Timestamp::from_second(now_s).unwrap_or_default();
    findings.extend(clock::time_zone(variable.as_deref(), zone.as_ref(), now));
    findings
}

//! Ten thousand held streams: what each costs in memory, and that none is lost when the gate drains.
//!
//! The gate runs in a process of its own, this same test binary started again, so that its memory can be read
//! and so that each process stays below its limit of open files.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::Semaphore;

use crate::support::gate::{config_for, set_drain_timeout};
use crate::support::valve::Limits;
use crate::support::{Gate, Stub, fixture, valve};

/// Streams held at once.
const STREAMS: usize = 10_000;
/// Open files that either process needs.
const FILES: u64 = STREAMS as u64 + 2_000;
/// Of them, how many the backend serves at once after the valve opens.
const RUNNING: usize = 256;
/// How long the whole story may take.
const BOUND: Duration = Duration::from_secs(240);
/// Tells the child which backend to stand before.
const BACKEND: &str = "KVGATE_TEST_HELD_BACKEND";

/// The child's side: a gate whose valve opens when it drains. Orders come as lines on its input.
#[tokio::test]
async fn gate_in_a_process_of_its_own() {
    let Ok(backend) = std::env::var(BACKEND) else {
        return;
    };
    let (policy, valve) = valve(Limits {
        running: RUNNING,
        ..Limits::default()
    });
    let mut config = config_for(&[backend]);
    set_drain_timeout(&mut config, BOUND);
    let gate = Gate::start_with(config, policy).await.up().await;
    say(&format!("listening {}", gate.addr()));
    next_order().await;
    valve.holds(STREAMS).await;
    say("held");
    next_order().await;
    let draining = tokio::spawn(gate.drain());
    valve.open();
    draining.await.unwrap();
    say("drained");
}

/// Waits for a line on the input.
async fn next_order() {
    let read = || std::io::stdin().read_line(&mut String::new());
    tokio::task::spawn_blocking(read).await.unwrap().unwrap();
}

fn say(line: &str) {
    // Straight to the descriptor: the test harness captures what `println!` prints.
    let mut out = std::io::stdout();
    writeln!(out, "\n{line}").unwrap();
    out.flush().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_held_streams_are_all_served_when_the_gate_drains() {
    if open_files_limit() < FILES {
        println!("skipped: `ulimit -n` is below {FILES}");
        return;
    }
    tokio::time::timeout(BOUND, story()).await.unwrap();
}

async fn story() {
    let stub = Stub::start().await;
    let (mut child, mut orders, mut said) = start_child(&stub.url());
    let _answering = stub.answer_all(fixture("chat-stream-usage"));
    let addr = said.after("listening ").await;
    let idle = resident_bytes(&child);

    let connecting = Arc::new(Semaphore::new(512));
    let clients: Vec<_> = (0..STREAMS)
        .map(|n| tokio::spawn(client(addr.clone(), n, Arc::clone(&connecting))))
        .collect();
    orders.write_all(b"hold\n").await.unwrap();
    said.after("held").await;
    let each = resident_bytes(&child).saturating_sub(idle) / STREAMS as u64;
    println!("{STREAMS} held streams: {each} bytes of resident memory each");

    orders.write_all(b"drain\n").await.unwrap();
    let mut lost = 0;
    for client in clients {
        lost += usize::from(!client.await.unwrap());
    }
    assert_eq!(lost, 0, "of {STREAMS}");
    said.after("drained").await;
    assert!(child.wait().await.unwrap().success());
}

fn start_child(backend: &str) -> (Child, ChildStdin, Said) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "held::gate_in_a_process_of_its_own",
            "--nocapture",
        ])
        .env(BACKEND, backend)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let orders = child.stdin.take().unwrap();
    let said = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, orders, Said(said))
}

/// What the child said so far.
struct Said(tokio::io::Lines<BufReader<tokio::process::ChildStdout>>);

impl Said {
    /// The rest of the next line that begins with `start`.
    async fn after(&mut self, start: &str) -> String {
        loop {
            let line = self.0.next_line().await.unwrap().expect("the child lives");
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }
}

/// One stream from its request to its end; true when it came whole.
async fn client(addr: String, n: usize, connecting: Arc<Semaphore>) -> bool {
    let mut socket = {
        let _permit = connecting.acquire().await.unwrap();
        TcpStream::connect(addr).await.unwrap()
    };
    let body = format!(
        r#"{{"model":"tiny","messages":[{{"role":"user","content":"hello"}}],"stream":true,"job_id":"p{n}"}}"#
    );
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gate\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = socket.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer);
    read.is_ok() && text.starts_with("HTTP/1.1 200") && text.contains("data: [DONE]")
}

/// Resident memory of the child, from `/proc`.
fn resident_bytes(child: &Child) -> u64 {
    let path = format!("/proc/{}/status", child.id().unwrap());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

/// The soft limit of open files; 0 where it cannot be read.
fn open_files_limit() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|rest| rest.split_whitespace().next());
    soft.map_or(0, |soft| soft.parse().unwrap_or(u64::MAX))
}

//! Stories of `manifest.json`.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::*;
use crate::harness::report::artifacts::Artifacts;

/// A checkout with one commit and one file that differs from it.
fn checkout(dir: &Path) {
    let git = |args: &[&str]| {
        let identity = [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "-c",
            "commit.gpgsign=false",
        ];
        let mut command = Command::new("git");
        let ended = command
            .args(identity)
            .args(args)
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(ended.status.success(), "{ended:?}");
    };
    fs::write(dir.join("a.txt"), "one\n").unwrap();
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "first"]);
    git(&["tag", "v1"]);
    fs::write(dir.join("a.txt"), "two\n").unwrap();
}

fn inputs(dir: &Path) -> Inputs {
    Inputs {
        run: rundir::Manifest {
            policy: Some("baseline".to_owned()),
            concurrency: 8,
            trace: "tau2".to_owned(),
            seed: 7,
            epoch_unix: 1_767_600_000.5,
            ..rundir::Manifest::default()
        },
        commands: vec![
            ["kvgate", "experiment", "run", "--user-key", "sk-typed-in"]
                .map(str::to_owned)
                .to_vec(),
        ],
        spec: json!({"policy": "baseline", "header": "Bearer sk-in-the-spec"}),
        seeds: BTreeMap::from([("texts".to_owned(), u64::MAX)]),
        checkouts: BTreeMap::from([("tau2".to_owned(), dir.to_owned())]),
        files: BTreeMap::from([
            ("trace".to_owned(), dir.join("a.txt")),
            ("model".to_owned(), dir.join("config.json")),
        ]),
        engine: json!({"kind": "vllm", "flags": ["--port", "1900"]}),
        policy: json!({"threshold": 0.7}),
        secrets: vec![Secret("sk-in-the-spec".to_owned())],
        ..Inputs::default()
    }
}

fn finish(outcome: Outcome) -> Finish {
    Finish {
        outcome,
        cause: None,
        exit: 0,
        counts: BTreeMap::from([("tasks".to_owned(), 278)]),
        engine: Some(json!({"kind": "vllm", "flags": ["--port", "1900"]})),
    }
}

#[tokio::test]
async fn what_is_written_reads_as_any_runs_manifest_and_as_itself() {
    let (source, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let record = Record::begin(inputs(source.path()), 1_767_600_000.0).await;
    let dir = RunDir::at(run.path());
    record.write(&dir).unwrap();
    let plain = dir.manifest().unwrap();
    assert_eq!((plain.concurrency, plain.seed), (8, 7));
    assert_eq!(plain.policy.as_deref(), Some("baseline"));
    let read = Record::read(run.path()).unwrap();
    assert_eq!(read.run, record.run);
    assert_eq!(read.seeds["texts"], u64::MAX);
    assert!(read.began.time.starts_with("2026-01-0"), "{:?}", read.began);
    assert!(read.versions.contains_key("kvgate") && read.machine.cores > 0);
    assert_eq!(
        read.files["kvgate"].digest.as_ref().unwrap().sha256.len(),
        64
    );
    assert_eq!(read.files["model"].digest, None, "there is none");
    assert_eq!(read.ended, None);
}

#[tokio::test]
async fn a_run_that_goes_on_keeps_its_beginning_and_first_command_and_notes_each_time() {
    let source = tempfile::tempdir().unwrap();
    let mut inputs = inputs(source.path());
    let first = Record::begin(inputs.clone(), 10.0).await;
    let resume = vec!["kvgate".to_owned(), "resume".to_owned()];
    inputs.commands.push(resume.clone());
    let mut second = Record::begin(inputs.clone(), 100.0).await;
    second.go_on(first.clone());
    let mut third = Record::begin(inputs, 200.0).await;
    third.go_on(second);
    assert_eq!(
        (&third.began, &third.command),
        (&first.began, &first.command)
    );
    let times: Vec<f64> = third.resumed.iter().map(|moment| moment.unix_s).collect();
    assert_eq!(times, [100.0, 200.0]);
    assert_eq!(third.resumed_by, [resume]);
    assert!(first.resumed.is_empty() && first.resumed_by.is_empty());
}

#[tokio::test]
async fn a_run_that_goes_on_without_knowing_its_first_command_takes_it_from_what_was_there() {
    let source = tempfile::tempdir().unwrap();
    let mut inputs = inputs(source.path());
    let first = Record::begin(inputs.clone(), 10.0).await;
    let resume = vec!["kvgate".to_owned(), "resume".to_owned()];
    inputs.commands = vec![resume.clone()];
    let mut second = Record::begin(inputs, 100.0).await;
    second.go_on(first.clone());
    assert_eq!(second.commands(), [first.command, resume]);
}

#[tokio::test]
async fn no_key_is_written_wherever_it_came_from() {
    let (source, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut record = Record::begin(inputs(source.path()), 0.0).await;
    let mut failed = finish(Outcome::Failed);
    failed.cause = Some("401 for sk-in-the-spec".to_owned());
    record.end(failed, 1.0).await;
    record.write(&RunDir::at(run.path())).unwrap();
    let text = fs::read_to_string(run.path().join(FILE)).unwrap();
    for key in ["sk-typed-in", "sk-in-the-spec"] {
        assert!(!text.contains(key), "{key} in {text}");
    }
    assert!(
        text.contains("401 for ***") && text.contains("Bearer ***"),
        "{text}"
    );
}

#[tokio::test]
async fn the_report_shows_the_state_of_a_checkout() {
    let (source, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    checkout(source.path());
    let record = Record::begin(inputs(source.path()), 0.0).await;
    record.write(&RunDir::at(run.path())).unwrap();
    let facts: BTreeMap<String, String> = Artifacts::of(run.path())
        .unwrap()
        .facts()
        .into_iter()
        .collect();
    assert_eq!(facts["git.tau2.head"].len(), 40);
    assert_eq!(facts["git.tau2.describe"], "v1");
    assert_eq!(facts["git.tau2.dirty"], "1");
    assert_eq!(facts["git.tau2.diff_sha256"].len(), 64);
    assert_eq!(facts["policy_parameters.threshold"], "0.7");
}

#[tokio::test]
async fn a_folder_that_is_no_checkout_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Git::of(dir.path()).await, None);
}

#[tokio::test]
async fn the_end_tells_what_is_no_longer_as_it_was() {
    let source = tempfile::tempdir().unwrap();
    checkout(source.path());
    let mut record = Record::begin(inputs(source.path()), 10.0).await;
    record.end(finish(Outcome::Done), 20.0).await;
    let end = record.ended.as_ref().unwrap();
    let of_source = |changed: &[String]| -> Vec<String> {
        // The folder of the program that tests this may change meanwhile.
        let others = changed
            .iter()
            .filter(|line| !line.contains("git kvgate") && !line.contains("git here"));
        others.cloned().collect()
    };
    assert_eq!(of_source(&end.changed), Vec::<String>::new());
    assert_eq!((end.counts["tasks"], end.at.unix_s), (278, 20.0));
    fs::write(source.path().join("a.txt"), "three\n").unwrap();
    let mut finish = finish(Outcome::Interrupted);
    finish.engine = Some(json!({"kind": "another"}));
    record.end(finish, 30.0).await;
    let changed = of_source(&record.ended.as_ref().unwrap().changed).join("\n");
    assert!(
        changed.contains("trace: ") && changed.contains("another content"),
        "{changed}"
    );
    assert!(changed.contains("engine: "), "{changed}");
    assert!(
        changed.contains("git tau2: its files changed; 1 differed"),
        "{changed}"
    );
}

#[test]
fn another_commit_and_a_checkout_that_is_gone_are_told() {
    let before = Git {
        folder: PathBuf::new(),
        head: "a".to_owned(),
        describe: None,
        dirty: 0,
        diff_sha256: None,
    };
    let mut now = before.clone();
    assert_eq!(git::change("tau2", &before, Some(&now)), None);
    now.head = "b".to_owned();
    assert_eq!(
        git::change("tau2", &before, Some(&now)).unwrap(),
        "git tau2: b is checked out, and was a"
    );
    assert!(
        git::change("tau2", &before, None)
            .unwrap()
            .contains("no longer")
    );
}

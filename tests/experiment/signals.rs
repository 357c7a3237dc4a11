//! Told to stop, from its terminal or from another one.

use rustix::process::Signal;

use crate::support::{
    Playing, ended, experiment, json, lines, log, logged, place, replay, said, send, until,
    until_gone,
};

/// The state's phase.
fn phase(dir: &std::path::Path) -> String {
    let state = json(&dir.join("state.json")).expect("a state");
    state["phase"].as_str().expect("a word").to_owned()
}

#[test]
fn one_interrupt_ends_the_cell_and_keeps_its_records_and_resume_plays_it() {
    let (_temp, dir) = place();
    let line = replay("run", 8, 60, &dir) + " --concurrency 2";
    let mut playing = Playing::start(&line, &dir);
    playing.until_ended("kvgate-c2", 1);
    let children = playing.children();

    playing.signal(Signal::INT);

    assert_eq!(playing.end(), Some(1));
    until_gone(children.into_values());
    assert_eq!(phase(&dir), "interrupted");
    assert_eq!(ended(&dir)["outcome"], "interrupted");
    assert_eq!(ended(&dir)["cause"], "stopped");
    let said_so = format!("`kvgate experiment resume {}` goes on", dir.display());
    assert_eq!(logged(&dir, &said_so), 1, "{}", log(&dir));

    let resumed = experiment(&format!("resume {} --quiet", dir.display()));
    assert!(resumed.status.success(), "{}", said(&resumed));
    assert_eq!(phase(&dir), "done");
    assert_eq!(lines(&dir.join("programs.jsonl")).len(), 8);
    assert!(dir.join("interrupted/kvgate-c2-1/programs.jsonl").exists());
}

#[test]
fn a_second_interrupt_ends_at_once_what_the_first_one_lets_end() {
    let (_temp, dir) = place();
    let line = replay("run", 8, 60, &dir) + " --concurrency 2";
    let mut playing = Playing::start(&line, &dir);
    playing.until_ended("kvgate-c2", 1);
    let children = playing.children();
    // Nobody answers any more, so that there is something to wait for.
    send(children["engine"], Signal::STOP);

    playing.signal(Signal::INT);
    until("the first is heard", || {
        (logged(&dir, "once more ends it now") == 1).then_some(())
    });
    playing.signal(Signal::INT);
    send(children["engine"], Signal::CONT);

    assert_eq!(playing.end(), Some(1));
    until_gone(children.into_values());
    assert_eq!(phase(&dir), "interrupted");
}

#[test]
fn a_detached_experiment_is_seen_from_elsewhere_and_one_directory_has_one_player() {
    let (_temp, dir) = place();
    let shown = dir.display();
    let line = replay("run", 40, 30, &dir) + " --concurrency 2";
    let begun = experiment(&format!("{line} --detach"));
    assert!(begun.status.success(), "{}", said(&begun));
    assert!(
        said(&begun).contains("in the background"),
        "{}",
        said(&begun)
    );

    // As long as it is in its preflight, the folder holds no experiment that could be resumed.
    until("its first cell", || {
        dir.join("manifest.json").exists().then_some(())
    });
    let second = experiment(&line);
    assert_eq!(second.status.code(), Some(1));
    let complaint = said(&second);
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(
        complaint.contains("holds an experiment already"),
        "{complaint}"
    );
    let second = experiment(&format!("resume {shown}"));
    assert_eq!(second.status.code(), Some(1));
    let complaint = said(&second);
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(
        complaint.contains("is being played by process"),
        "{complaint}"
    );

    let status = experiment(&format!("status {shown}"));
    assert_eq!(status.status.code(), Some(0), "{}", said(&status));
    assert!(said(&status).contains("running"), "{}", said(&status));
    let stopped = experiment(&format!("stop {shown}"));
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert!(said(&stopped).contains("goes on"), "{}", said(&stopped));
    assert_eq!(phase(&dir), "interrupted");
    assert_eq!(logged(&dir, "stopping: what runs may end"), 1);
}

#[test]
fn a_check_starts_nothing_and_leaves_nothing() {
    let (_temp, dir) = place();
    let checked = experiment(&(replay("run", 2, 60, &dir) + " --check"));
    assert!(checked.status.success(), "{}", said(&checked));
    assert!(said(&checked).contains("all is well"), "{}", said(&checked));
    assert!(!dir.exists());
}

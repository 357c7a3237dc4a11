//! What a run's folder says of how it was made.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use crate::support::{Playing, experiment, json, kvgate, place, replay, said};

#[test]
fn all_settings_of_the_policy_in_force_are_in_the_manifest_and_none_without_a_gate() {
    let (temp, dir) = place();
    let file = temp.path().join("mine.toml");
    fs::write(&file, "[gate.continuum]\nttl_fixed_s = 2.5\n").expect("a file");
    let line = replay("matrix", 1, 150, &dir) + " --concurrency 1 --policy continuum,direct";
    let run = experiment(&format!("{line} --config {}", file.display()));
    assert!(run.status.success(), "{}", said(&run));

    let parameters = |cell: &str| {
        let manifest = json(&dir.join("cells").join(cell).join("manifest.json"));
        manifest.expect("a manifest")["policy_parameters"].clone()
    };
    let settings = parameters("continuum-c1");
    assert_eq!(settings["ttl_fixed_s"], 2.5, "{settings}");
    assert!(settings["max_held"].is_u64(), "a default: {settings}");
    assert!(parameters("direct-c1").is_null());
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let below = |path: PathBuf| {
        if path.is_dir() {
            files(&path)
        } else {
            vec![path]
        }
    };
    paths.flat_map(below).collect()
}

#[test]
fn an_admin_token_is_refused_in_the_file_and_taken_from_the_environment_and_stands_in_no_file() {
    const TOKEN: &str = "open-sesame-of-a-test";
    let (temp, dir) = place();
    let file = temp.path().join("mine.toml");
    fs::write(&file, format!("[gate]\nadmin_token = \"{TOKEN}\"\n")).expect("a file");
    let line = replay("run", 8, 60, &dir) + " --concurrency 2";
    let run = experiment(&format!("{line} --config {}", file.display()));
    assert_eq!(run.status.code(), Some(2), "{}", said(&run));
    assert!(
        said(&run).contains("export KVGATE_ADMIN_TOKEN"),
        "{}",
        said(&run)
    );
    assert!(!dir.exists(), "nothing is made");

    let mut command = kvgate(&format!("experiment {line}"));
    let mut playing = Playing::of(command.env("KVGATE_ADMIN_TOKEN", TOKEN), &dir);
    playing.until_ended("kvgate-c2", 1);
    let manifest = json(&dir.join("manifest.json")).expect("a manifest");
    let gate = manifest["url"].as_str().expect("a URL");
    let mut gate = TcpStream::connect(gate.trim_start_matches("http://")).expect("the gate");
    let request =
        "PUT /policy HTTP/1.1\r\nhost: gate\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    gate.write_all(request.as_bytes()).expect("it listens");
    let mut answer = String::new();
    gate.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    for file in files(&dir) {
        let bytes = fs::read(&file).expect("a file");
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(TOKEN), "{}", file.display());
    }
}

#[test]
fn a_key_that_the_command_line_holds_under_no_flag_for_keys_is_in_neither_state_nor_manifest() {
    const KEY: &str = "sk-of-a-test";
    let (temp, dir) = place();
    let file = temp.path().join(KEY);
    fs::write(&file, "").expect("a file");
    let line = replay("run", 1, 150, &dir) + " --concurrency 1 --policy direct";
    let mut command = kvgate(&format!("experiment {line} --config {}", file.display()));
    let run = command.env("TEST_API_KEY", KEY).output().expect("it runs");
    assert!(run.status.success(), "{}", said(&run));
    for name in ["state.json", "manifest.json"] {
        let text = fs::read_to_string(dir.join(name)).expect("a file");
        assert!(text.contains("/***") && !text.contains(KEY), "{text}");
    }
}

//! Stories of the installation that need none.

use std::sync::mpsc;

use super::*;

#[test]
fn an_environment_without_its_mark_or_its_python_is_not_used() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path();
    fs::create_dir(place.join("bin")).unwrap();
    let python = python_of(place);
    fs::write(&python, "").unwrap();
    assert_eq!(checked(place), None, "half built");
    fs::write(place.join(CHECKED), "found").unwrap();
    assert_eq!(checked(place).unwrap(), b"found");
    fs::remove_file(&python).unwrap();
    std::os::unix::fs::symlink(place.join("removed"), &python).unwrap();
    assert_eq!(checked(place), None, "its Python is gone");
}

#[test]
fn what_interrupted_builds_left_is_cleared_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["tau2-1", "tau2-1.building-7/bin", "tau2-2", "vllm"] {
        fs::create_dir_all(temp.path().join(name)).unwrap();
    }
    clear(temp.path(), "tau2-1").unwrap();
    let left = fs::read_dir(temp.path()).unwrap();
    let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["tau2-2", "vllm"]);
}

#[test]
fn a_second_run_says_that_it_waits_and_waits_until_the_first_is_done() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("lock");
    let first = lock(&path, &mut |line| panic!("{line}")).unwrap();
    let (sender, said) = mpsc::channel();
    let second = std::thread::spawn(move || {
        lock(&path, &mut |line| sender.send(line.to_owned()).unwrap()).unwrap();
    });
    assert!(said.recv().unwrap().contains("waiting"));
    assert!(!second.is_finished());
    drop(first);
    second.join().unwrap();
}

#[test]
fn a_machine_without_a_python_is_told_what_to_install() {
    let error = find_python(&["no-such-python"], 12)
        .unwrap_err()
        .to_string();
    assert!(error.contains("Python 3.12 or later"), "{error}");
}

#[test]
fn a_failed_installation_says_what_helps() {
    for (output, word) in [
        (
            "OSError: [Errno 28] No space left on device",
            "disk is full",
        ),
        (
            "THESE PACKAGES DO NOT MATCH THE HASHES FROM",
            "not the one that was pinned",
        ),
        (
            "The virtual environment was not created because ensurepip is not available",
            "python3-venv",
        ),
        (
            "Failed to establish a new connection: [Errno -3] Temporary failure in name resolution",
            "network",
        ),
        ("error: Failed to fetch: dns error", "network"),
        (
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)",
            "network",
        ),
        (
            "ERROR: No matching distribution found for numpy==2.5.5",
            "another Python",
        ),
        ("something new", "see the output"),
    ] {
        assert!(
            remedy(output).contains(word),
            "{output}: {}",
            remedy(output)
        );
    }
}

#[test]
fn a_command_that_fails_is_shown_with_its_last_lines_and_its_log() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("log");
    let mut log = Log::create(&path).unwrap();
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "echo Collecting litellm; echo No space left >&2; exit 3",
    ]);
    let mut steps = Vec::new();
    let run = log.run(&mut shell, &mut |step| steps.push(step.to_owned()));
    let error = run.unwrap_err().to_string();
    for words in ["disk is full", "exit status: 3", "No space left", "log"] {
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(steps, ["Collecting litellm"]);
    assert_eq!(
        fs::read_to_string(path).unwrap(),
        "Collecting litellm\nNo space left\n"
    );
}

#[test]
fn of_what_pip_says_the_steps_are_shown() {
    let line = "Collecting rich==15.0.0 (from -r tau2.pins (line 2474))";
    assert_eq!(step(line), Some("Collecting rich==15.0.0"));
    assert_eq!(
        step("Installing collected packages: addict, zipp"),
        Some("Installing collected packages")
    );
    assert_eq!(step("[notice] A new release of pip"), None);
}

//! What would keep the driver from running, or from measuring what is meant, all of it at once.

use std::path::Path;
use std::process::{Command, Stdio};

use super::model_config::Endpoint;
use super::{Settings, layout, python};
use crate::harness::child::last_lines;
use crate::harness::group;
use crate::harness::tau2::environment::VARIABLES;

/// Files of the fork without which nothing runs.
const FILES: [&str; 3] = [
    "evaluation/tau2-bench/run_oss.py",
    "evaluation/tau2-bench/tau2/run.py",
    "LLM_CALL.py",
];
/// Of each domain its name, its tasks and its databases, below the data.
const DOMAINS: [(&str, &str, &[&str]); 4] = [
    ("mock", "tasks.json", &["db.json"]),
    ("retail", "tasks.json", &["db.json"]),
    ("telecom", "tasks.json", &["db.toml", "user_db.toml"]),
    ("airline", "original_tasks.json", &["db.json"]),
];
/// Domains whose databases may be another installation's; of the others the fork reads its own.
const ELSEWHERE: [&str; 2] = ["telecom", "airline"];
/// What the fork imports, but for `transformers`, which has a stand-in.
pub const MODULES: [&str; 18] = [
    "litellm",
    "openai",
    "loguru",
    "pydantic",
    "pandas",
    "deepdiff",
    "docstring_parser",
    "fastapi",
    "uvicorn",
    "psutil",
    "yaml",
    "toml",
    "dotenv",
    "requests",
    "rich",
    "addict",
    "tenacity",
    "tabulate",
];
/// Finds which of them are missing.
const FIND: &str = include_str!("python/modules.py");
/// Open files the driver may need for each task in flight: it makes a client for every call, and leaves closing them
/// to the garbage collector. With 128 tasks it died of 1024.
const FILES_PER_TASK: u64 = 32;

/// Everything that is wrong, one line each, with what helps; empty if the run can begin. Asks the interpreter, which
/// takes a second.
pub fn preflight(settings: &Settings) -> Vec<String> {
    let mut wrong = checkout(settings);
    wrong.extend(interpreter(&settings.python.interpreter));
    wrong.extend(
        Endpoint::of_url(&settings.gate)
            .err()
            .map(|e| e.to_string()),
    );
    wrong.extend(directory(&settings.dir));
    wrong.extend(open_files(settings.concurrency));
    wrong
}

/// What the checkout at `root` lacks wherever the data are, one line each: the driver itself, and the tasks of
/// `domains`. Asks nobody.
pub fn lacks(root: &Path, domains: &[String]) -> Vec<String> {
    let lacks = |file: &str| format!("the checkout {} lacks {file}", root.display());
    let missing = FILES.into_iter().filter(|file| !root.join(file).exists());
    let mut wrong: Vec<String> = missing.map(lacks).collect();
    for domain in domains {
        let Some((name, tasks, _)) = DOMAINS.iter().find(|(name, ..)| name == domain) else {
            let known = DOMAINS.map(|(name, ..)| name).join(", ");
            wrong.push(format!("run_oss.py has no domain {domain}, only {known}"));
            continue;
        };
        let tasks = format!("data/tau2/domains/{name}/{tasks}");
        if !root.join(&tasks).exists() {
            wrong.push(lacks(&tasks));
        }
    }
    wrong
}

fn checkout(settings: &Settings) -> Vec<String> {
    let root = &settings.checkout;
    let mut wrong = lacks(root, &settings.domains);
    let asked_for = |(name, ..): &&(&str, _, _)| settings.domains.iter().any(|d| d == name);
    for (name, _, databases) in DOMAINS.iter().filter(asked_for) {
        let folder = format!("tau2/domains/{name}");
        let own = python::data(root);
        let elsewhere = settings.python.data.clone();
        let data = elsewhere
            .filter(|_| ELSEWHERE.contains(name))
            .unwrap_or(own);
        for file in *databases {
            let path = data.join(&folder).join(file);
            if !path.exists() {
                wrong.push(format!(
                    "{} is missing: snapshots leave out large files",
                    path.display()
                ));
            }
        }
    }
    wrong
}

fn interpreter(python: &Path) -> Option<String> {
    let mut command = Command::new(python);
    let asked = command.args(["-c", FIND]).args(MODULES).envs(VARIABLES);
    let name = python.display();
    let output = match asked.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Some(format!("{name}: {}", last_lines(&errors)));
        }
        Err(error) => return Some(format!("cannot run {name}: {error}")),
    };
    let missing: Vec<String> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (!missing.is_empty()).then(|| {
        let missing = missing.join(", ");
        format!("{name} lacks {missing}: install them, or leave --oss-python out")
    })
}

fn directory(dir: &Path) -> Vec<String> {
    let dir = layout::absolute(dir);
    let name = dir.display().to_string();
    let mut wrong = Vec::new();
    if name.contains(char::is_whitespace) {
        wrong.push(format!(
            "{name} has a blank, which the driver's log cannot hold in a name"
        ));
    }
    if layout::is_used(&dir) {
        wrong.push(layout::used(&dir));
    }
    wrong
}

fn open_files(concurrency: u32) -> Option<String> {
    let needed = FILES_PER_TASK * u64::from(concurrency);
    let allowed = group::most_open_files()?;
    (allowed < needed).then(|| {
        format!(
            "{concurrency} tasks in flight may open {needed} files, and {allowed} are allowed: raise `ulimit -Hn`, \
             or take fewer"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::harness::experiment::oss::Python;

    /// A checkout with nothing in it, and settings that fit nothing.
    fn nothing(root: &Path) -> Settings {
        Settings {
            checkout: root.join("fork"),
            python: Python {
                interpreter: root.join("no-python"),
                data: None,
            },
            kvgate: PathBuf::new(),
            dir: root.join("a run"),
            gate: "https://gate".to_owned(),
            policy: "baseline".to_owned(),
            user: "gpt-5".to_owned(),
            domains: vec!["airline".to_owned(), "bank".to_owned()],
            tasks: None,
            trials: 1,
            concurrency: u32::MAX,
            max_steps: 200,
            patience: std::time::Duration::ZERO,
        }
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let settings = nothing(temp.path());
        fs::create_dir_all(settings.dir.join("outputs/all_domains")).unwrap();
        let wrong = preflight(&settings);
        for words in [
            "lacks evaluation/tau2-bench/run_oss.py",
            "lacks evaluation/tau2-bench/tau2/run.py",
            "lacks LLM_CALL.py",
            "lacks data/tau2/domains/airline/original_tasks.json",
            "airline/db.json is missing",
            "no domain bank",
            "cannot run",
            "http://HOST:PORT",
            "has a blank",
            "holds a run already",
        ] {
            assert!(
                wrong.iter().any(|line| line.contains(words)),
                "{words}: {wrong:#?}"
            );
        }
        // Where open files are unlimited, so many tasks are no problem.
        assert!((10..=11).contains(&wrong.len()), "{wrong:#?}");
    }

    #[test]
    fn the_data_of_another_installation_count_where_the_fork_reads_them() {
        let temp = tempfile::tempdir().unwrap();
        let mut settings = nothing(temp.path());
        let data = temp.path().join("installed");
        for domain in ["airline", "retail"] {
            let folder = data.join("tau2/domains").join(domain);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("db.json"), "{}").unwrap();
        }
        settings.python.data = Some(data);
        settings.domains = vec!["airline".to_owned(), "retail".to_owned()];
        let wrong = checkout(&settings).join("\n");
        assert!(!wrong.contains("airline/db.json"), "{wrong}");
        assert!(wrong.contains("retail/db.json"), "{wrong}");
    }
}

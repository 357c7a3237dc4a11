//! Whether an engine gave the GPU's memory back, by `nvidia-smi`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use tokio::time::timeout;

/// How long the driver may take to give memory back.
pub(super) const RELEASE: Duration = Duration::from_secs(60);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(500);
/// How long one answer may take; a busy driver is slow.
const ANSWER: Duration = Duration::from_secs(10);

/// Who held GPU memory before an engine was started. Everybody who came since must be gone after it: in a container the
/// driver tells other process ids than the system, so ours cannot be told by theirs.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    program: PathBuf,
    before: Vec<Holder>,
}

/// A process that holds GPU memory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    pid: String,
    memory: String,
}

impl Watch {
    pub(super) async fn begin(program: PathBuf) -> anyhow::Result<Self> {
        let before = holders(&program).await?;
        Ok(Self { program, before })
    }

    /// Waits at most `patience` until nobody new holds memory.
    pub(super) async fn settle(self, patience: Duration) -> anyhow::Result<()> {
        let mut left = Vec::new();
        let settled = async {
            loop {
                left = self.newcomers().await?;
                if left.is_empty() {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let settled: Result<anyhow::Result<()>, _> = timeout(patience, settled).await;
        settled.unwrap_or_else(|_| {
            let names: Vec<String> = left
                .iter()
                .map(|holder| format!("process {} holds {}", holder.pid, holder.memory))
                .collect();
            bail!(
                "GPU memory is not back {patience:?} after the engine ended: {}",
                names.join(", ")
            )
        })
    }

    async fn newcomers(&self) -> anyhow::Result<Vec<Holder>> {
        let was_there = |now: &Holder| self.before.iter().any(|then| then.pid == now.pid);
        let mut holders = holders(&self.program).await?;
        holders.retain(|holder| !was_there(holder));
        Ok(holders)
    }
}

async fn holders(program: &PathBuf) -> anyhow::Result<Vec<Holder>> {
    let answer = Command::new(program)
        .args([
            "--query-compute-apps=pid,used_memory",
            "--format=csv,noheader",
        ])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let name = program.display();
    let output = timeout(ANSWER, answer)
        .await
        .with_context(|| format!("{name} does not answer within {ANSWER:?}"))?
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        bail!(
            "{name} failed: {}",
            text.lines().next().unwrap_or("no output")
        );
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Lines of `PID, 1234 MiB`; others, such as a remark that there are none, are passed over.
fn parse(text: &str) -> Vec<Holder> {
    let fields = text.lines().filter_map(|line| line.split_once(','));
    fields
        .filter(|(pid, _)| !pid.is_empty() && pid.trim().bytes().all(|byte| byte.is_ascii_digit()))
        .map(|(pid, memory)| Holder {
            pid: pid.trim().to_owned(),
            memory: memory.trim().to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An nvidia-smi whose answers are these scripts, one after the other, the last one for ever.
    fn fake(dir: &std::path::Path, answers: &[&str]) -> PathBuf {
        for (index, answer) in answers.iter().enumerate() {
            std::fs::write(dir.join(format!("{index}")), answer).unwrap();
        }
        let path = dir.join("nvidia-smi");
        let script = format!(
            "#!/bin/sh\ncd '{}'\necho x >> asked\nn=$(($(wc -l < asked) - 1))\n[ $n -lt {last} ] || n={last}\n. ./$n\n",
            dir.display(),
            last = answers.len() - 1
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_line_per_process_is_read_and_a_remark_is_not_one() {
        let holders = parse("12345, 78210 MiB\n 99, [N/A]\nNo running processes found\n");
        assert_eq!(holders.len(), 2);
        assert_eq!(holders[0].pid, "12345");
        assert_eq!(holders[1].memory, "[N/A]");
    }

    #[tokio::test]
    async fn memory_that_comes_back_late_is_waited_for_and_a_neighbour_is_none_of_ours() {
        let temp = tempfile::tempdir().unwrap();
        let others = "echo 7, 10 MiB";
        let ours = "echo 7, 10 MiB; echo 8, 900 MiB";
        let program = fake(temp.path(), &[others, ours, others]);
        let watch = Watch::begin(program).await.unwrap();
        watch.settle(RELEASE).await.unwrap();
        let asked = std::fs::read_to_string(temp.path().join("asked")).unwrap();
        assert_eq!(asked.lines().count(), 3);
    }

    #[tokio::test]
    async fn memory_that_stays_away_is_an_error_that_names_who_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let program = fake(temp.path(), &["true", "echo 8, 900 MiB"]);
        let watch = Watch::begin(program).await.unwrap();
        let error = watch.settle(3 * POLL).await.unwrap_err().to_string();
        assert!(error.contains("process 8 holds 900 MiB"), "{error}");
    }

    #[tokio::test]
    async fn a_driver_that_fails_is_told_with_what_it_says() {
        let temp = tempfile::tempdir().unwrap();
        let program = fake(temp.path(), &["echo cannot talk to the driver; exit 9"]);
        let error = Watch::begin(program).await.unwrap_err().to_string();
        assert!(error.contains("cannot talk to the driver"), "{error}");
    }
}

//! Whether an engine gave the GPU's memory back, by `nvidia-smi`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use tokio::time::timeout;

use crate::harness::experiment::gpu::{Tenant, tenants};

/// How long the driver may take to give memory back.
pub(super) const RELEASE: Duration = Duration::from_secs(60);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(500);

/// Who held GPU memory before an engine was started. Everybody who came since must be gone after it: in a container the
/// driver tells other process ids than the system, so ours cannot be told by theirs.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    program: PathBuf,
    before: Vec<Tenant>,
}

impl Watch {
    pub(super) async fn begin(program: PathBuf) -> anyhow::Result<Self> {
        let before = tenants(&program).await?;
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
            let names: Vec<String> = left.iter().map(told).collect();
            bail!(
                "GPU memory is not back {patience:?} after the engine ended: {}",
                names.join(", ")
            )
        })
    }

    async fn newcomers(&self) -> anyhow::Result<Vec<Tenant>> {
        let was_there = |now: &Tenant| self.before.iter().any(|then| then.pid == now.pid);
        let mut tenants = tenants(&self.program).await?;
        tenants.retain(|tenant| !was_there(tenant));
        Ok(tenants)
    }
}

fn told(tenant: &Tenant) -> String {
    let held = tenant.used_mib;
    let held = held.map_or_else(|| "memory".to_owned(), |mib| format!("{mib} MiB"));
    format!("process {} ({}) holds {held}", tenant.pid, tenant.name)
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

    #[tokio::test]
    async fn memory_that_comes_back_late_is_waited_for_and_a_neighbour_is_none_of_ours() {
        let temp = tempfile::tempdir().unwrap();
        let others = "echo GPU-1, 7, a, 10";
        let ours = "echo GPU-1, 7, a, 10; echo GPU-1, 8, b, 900";
        let program = fake(temp.path(), &[others, ours, others]);
        let watch = Watch::begin(program).await.unwrap();
        watch.settle(RELEASE).await.unwrap();
        let asked = std::fs::read_to_string(temp.path().join("asked")).unwrap();
        assert_eq!(asked.lines().count(), 3);
    }

    #[tokio::test]
    async fn memory_that_stays_away_is_an_error_that_names_who_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let program = fake(temp.path(), &["true", "echo GPU-1, 8, b, 900"]);
        let watch = Watch::begin(program).await.unwrap();
        let error = watch.settle(3 * POLL).await.unwrap_err().to_string();
        assert!(error.contains("process 8 (b) holds 900 MiB"), "{error}");
    }

    #[tokio::test]
    async fn a_driver_that_fails_is_told_with_what_it_says() {
        let temp = tempfile::tempdir().unwrap();
        let program = fake(temp.path(), &["echo cannot talk to the driver; exit 9"]);
        let error = Watch::begin(program).await.unwrap_err().to_string();
        assert!(error.contains("cannot talk to the driver"), "{error}");
    }
}

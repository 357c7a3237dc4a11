//! The driver as a process: started, followed, ended with all it started.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::follow::{Follower, Progress};
use super::verdict::{self, End, Verdict};
use super::{Settings, layout};
use crate::harness::child::Guarded;
use crate::harness::group;
use crate::harness::reference::files;

/// How often the log is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// A running driver. Killed with all it started when dropped.
#[derive(Debug)]
pub(super) struct Driver {
    process: Guarded,
    dir: PathBuf,
}

impl Driver {
    /// Writes what it needs and starts it; what it prints goes to `driver.log`.
    pub(super) fn start(settings: &Settings) -> anyhow::Result<Self> {
        let dir = layout::absolute(&settings.dir);
        let mut command = layout::prepare(settings)?;
        let path = dir.join(files::DRIVER_LOG);
        let log = File::create_new(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        // The driver's limit is what this process may open when it starts it.
        group::raise_open_files().context("cannot raise the limit of open files")?;
        command.stdout(log.try_clone()?).stderr(log);
        let process = Guarded::start(command)?;
        Ok(Self { process, dir })
    }

    /// Follows it to its end, and judges that.
    pub(super) async fn play(
        mut self,
        settings: &Settings,
        watch: mpsc::Sender<Progress>,
        cancel: CancellationToken,
    ) -> anyhow::Result<Verdict> {
        let mut follower = Follower::open(&self.dir.join(files::DRIVER_LOG), watch)?;
        let end = self.follow(&mut follower, settings, &cancel).await?;
        follower.read().await?;
        let seen = follower.finish().await;
        verdict::of(&self.dir, end, &seen)
    }

    async fn follow(
        &mut self,
        follower: &mut Follower,
        settings: &Settings,
        cancel: &CancellationToken,
    ) -> anyhow::Result<End> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                status = self.process.wait() => {
                    let status: ExitStatus = status?;
                    return Ok(End::Exited(status));
                }
                () = cancel.cancelled() => {
                    self.process.stop(settings.patience).await?;
                    return Ok(End::Stopped);
                }
                _ = looks.tick() => {}
            }
            follower.read().await?;
        }
    }
}

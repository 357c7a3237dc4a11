//! Stopping a pool from outside, at once or gently, and giving up a single simulation.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::event::Failure;

/// The hand on a running pool.
#[derive(Clone, Debug)]
pub struct Remote {
    drain: CancellationToken,
    kill: CancellationToken,
    given_up: mpsc::UnboundedSender<(String, Failure)>,
}

/// The other end of a [`Remote`].
#[derive(Debug)]
pub struct Control {
    pub(super) drain: CancellationToken,
    pub(super) kill: CancellationToken,
    /// Programs, and why.
    pub(super) given_up: mpsc::UnboundedReceiver<(String, Failure)>,
}

/// A hand on a pool, and what the pool is given of it.
pub fn control() -> (Remote, Control) {
    let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
    let (sender, given_up) = mpsc::unbounded_channel();
    let control = Control {
        drain: drain.clone(),
        kill: kill.clone(),
        given_up,
    };
    let remote = Remote {
        drain,
        kill,
        given_up: sender,
    };
    (remote, control)
}

impl Remote {
    /// Starts nothing more, and lets what is running end.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends everything now; what is running fails with [`super::event::Cause::Stopped`], which a resumed run plays again.
    pub fn kill(&self) {
        self.kill.cancel();
    }

    /// Fails the running simulation of a program for a cause that does not pass, such as
    /// [`super::event::Cause::GivenUp`]: it is not tried again. Without effect if it is not running.
    pub fn give_up(&self, job_id: String, failure: Failure) {
        // Fails only when the pool is over.
        let _over = self.given_up.send((job_id, failure));
    }

    /// From here on Ctrl-C or SIGTERM drains, and the second one kills.
    ///
    /// # Errors
    /// When the process cannot listen for signals.
    pub fn obey_signals(&self) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let remote = self.clone();
        tokio::spawn(async move {
            for obey in [Self::drain, Self::kill] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                obey(&remote);
            }
        });
        Ok(())
    }
}

//! The [`Sequencer`] behind a lock, with a clock and an alarm.
//!
//! Requests call it from their own tasks: no channel and no task hop lie between a request and its decision, and
//! a request's `Drop` can report that its client left without waiting and without a chance to be lost. The lock
//! is held for one policy call, microseconds, and never across an await (docs/adr/001-policy-under-a-lock.md).

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::sequencer::Sequencer;
use super::verdict::{Answer, Arrived, Arriving, Ending};
use crate::clock::Clock;
use crate::policy::{RequestId, Time};

/// The shared front of the sequencer.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<Inner>,
    clock: Clock,
    /// Rings when the next deadline moved forward.
    alarm: Notify,
    /// Rings when a request has ended, for those who wait for a quiet gate.
    ended: Notify,
}

#[derive(Debug)]
struct Inner {
    sequencer: Sequencer,
    /// The deadline that the alarm task sleeps for; `None` if it sleeps until notified.
    armed: Option<Time>,
}

impl Gate {
    /// A gate around `sequencer`; [`Gate::run_alarm`] must run beside it.
    pub fn new(sequencer: Sequencer, clock: Clock) -> Self {
        let inner = Mutex::new(Inner {
            sequencer,
            armed: None,
        });
        Self {
            inner,
            clock,
            alarm: Notify::new(),
            ended: Notify::new(),
        }
    }

    /// The run's clock.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Runs `change` on the sequencer at the current time and re-arms the alarm if its deadline moved forward.
    pub fn with<R>(&self, change: impl FnOnce(&mut Sequencer, Time) -> R) -> R {
        let mut inner = self.inner.lock();
        // Read under the lock, so that time never runs backwards between calls (law P2).
        let now = self.clock.now();
        let result = change(&mut inner.sequencer, now);
        let next = inner.sequencer.next_deadline();
        if next.is_some_and(|next| inner.armed.is_none_or(|armed| next < armed)) {
            inner.armed = next;
            drop(inner);
            self.alarm.notify_one();
        }
        result
    }

    /// Takes a new request.
    pub fn arrive(&self, arriving: &Arriving<'_>) -> (Arrived, Time) {
        self.with(|sequencer, now| (sequencer.arrive(now, arriving), now))
    }

    /// Ends a request.
    pub fn finish(&self, request: RequestId, ending: &Ending<'_>) -> Time {
        let now = self.with(|sequencer, now| {
            sequencer.finish(now, request, ending);
            now
        });
        self.ended.notify_waiters();
        now
    }

    /// Ticks the sequencer whenever it asks for it. Never returns; runs as one task beside the gate.
    pub async fn run_alarm(&self) -> ! {
        loop {
            let next = {
                let mut inner = self.inner.lock();
                let now = self.clock.now();
                inner.sequencer.tick(now);
                inner.armed = inner.sequencer.next_deadline();
                inner.armed
            };
            match next {
                None => self.alarm.notified().await,
                Some(at) => {
                    let sleep = tokio::time::sleep_until(self.clock.instant(at).into());
                    tokio::select! {
                        () = sleep => {}
                        () = self.alarm.notified() => {}
                    }
                }
            }
        }
    }

    /// Waits until no request is open.
    pub async fn quiet(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Registered before the check, so that an end between the two is not missed.
            ended.as_mut().enable();
            if self.inner.lock().sequencer.open() == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// Whether an answer is still to come.
pub const fn is_held(answer: &Answer) -> bool {
    matches!(answer, Answer::Held(..))
}

//! The one place that reads a clock.
//!
//! [`Clock`] turns the machine's time into the run's: [`Time`] for policies, Unix seconds for records. With a
//! `scale` above 1 the run's time passes that many times faster than the machine's, so that a gate, a replay
//! and an engine that is sped up by the same factor agree on what a second is. All processes of one run share
//! an `epoch`; a process that joins late then still reads the same Unix time as the others.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::policy::Time;

/// The machine's own time, for what is about sockets and not about the run (such as a connection's idle time).
pub fn machine_now() -> Instant {
    Instant::now()
}

/// The time of a run, real or sped up.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The machine's reading when this clock was made.
    origin: Instant,
    /// The run's [`Time`] at `origin`.
    offset: Time,
    /// Unix seconds at [`Time::ZERO`].
    epoch_unix: f64,
    /// Run seconds per machine second, ≥ 1 in practice.
    scale: f64,
}

impl Clock {
    /// A clock that starts now and runs at the machine's speed.
    pub fn real() -> Self {
        Self::scaled(1.0, None)
    }

    /// A clock that runs `scale` times as fast as the machine's; the run began at `epoch_unix` (Unix seconds,
    /// machine time), or begins now.
    ///
    /// The scale must be positive and finite: the command line checks it.
    pub fn scaled(scale: f64, epoch_unix: Option<f64>) -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64());
        let epoch_unix = epoch_unix.unwrap_or(unix);
        Self {
            origin: Instant::now(),
            offset: Time::from_secs_f64((unix - epoch_unix) * scale),
            epoch_unix,
            scale,
        }
    }

    /// The run's time now.
    pub fn now(&self) -> Time {
        self.offset + self.origin.elapsed().mul_f64(self.scale)
    }

    /// `time` as Unix seconds of the run. With a scale of 1 that is the machine's Unix time.
    pub fn unix(&self, time: Time) -> f64 {
        self.epoch_unix + time.as_secs_f64()
    }

    /// Unix seconds at the start of the run, to hand to the run's other processes.
    pub const fn epoch_unix(&self) -> f64 {
        self.epoch_unix
    }

    /// Run seconds per machine second.
    pub const fn scale(&self) -> f64 {
        self.scale
    }

    /// How long the machine takes for `duration` of the run.
    pub fn machine(&self, duration: Duration) -> Duration {
        duration.div_f64(self.scale)
    }

    /// The machine's [`Instant`] at which the run reaches `time`; now if it already has.
    pub fn instant(&self, time: Time) -> Instant {
        self.origin + self.machine(time.since(self.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_with_one_epoch_read_the_same_unix_time() {
        let first = Clock::scaled(50.0, None);
        let late = Clock::scaled(50.0, Some(first.epoch_unix()));
        let (a, b) = (first.now(), late.now());
        assert!(
            b >= a && b.since(a) < Duration::from_secs(50),
            "within one machine second: {a:?} {b:?}"
        );
        assert!((first.unix(Time::ZERO) - late.unix(Time::ZERO)).abs() < 1e-9);
    }
}

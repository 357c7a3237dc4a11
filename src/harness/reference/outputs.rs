//! The JSON files of a run: its summary, the result of each task, and when Continuum moved each job. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// `outputs/metrics_global.json`; written only by a run that came to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Domains, in the order in which they took turns.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Tasks, times trials.
    pub total: u64,
    /// Those that did not fail.
    pub ok: u64,
    /// Those that did.
    pub error: u64,
    /// Length of the run, in seconds.
    pub elapsed_s: f64,
    /// `ok` per minute of it.
    pub tasks_per_min: f64,
}

/// `outputs/all_domains/{domain}__{task}__trial{n}.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Its domain.
    pub domain: String,
    /// Its id, unique in the domain.
    pub task_id: String,
    /// Which repetition.
    pub trial: u32,
    /// `ok` or `error`.
    pub status: String,
    /// The judge's, 0 to 1; `None` where the task failed.
    pub reward: Option<f64>,
}

/// What Continuum's scheduler noted of a job; times in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SchedulerEvent {
    /// A request of the job came.
    Arrived {
        /// When.
        at_s: f64,
    },
    /// It began to run.
    Started {
        /// When.
        at_s: f64,
        /// Tokens of its prompt.
        prompt: u64,
        /// Those found in the prefix cache.
        hit: u64,
        /// Whether it had run before and been evicted.
        again: bool,
    },
    /// It ended.
    Departed {
        /// When.
        at_s: f64,
    },
    /// Its KV was kept for the job's next request.
    Pinned {
        /// When.
        at_s: f64,
    },
    /// Its KV was given up.
    Unpinned {
        /// When.
        at_s: f64,
    },
    /// It was taken out of the running ones.
    Evicted {
        /// When.
        at_s: f64,
    },
}

impl<'de> Deserialize<'de> for SchedulerEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = BTreeMap::<String, f64>::deserialize(deserializer)?;
        let get = |name: &str| fields.get(name).copied();
        let started = |again: bool| {
            move |at_s: f64| Self::Started {
                at_s,
                prompt: get("prompt_length").map_or(0, whole),
                hit: get("hit_length").map_or(0, whole),
                again,
            }
        };
        get("Request_arrival_time")
            .map(|at_s| Self::Arrived { at_s })
            .or_else(|| get("waiting_to_running").map(started(false)))
            .or_else(|| get("evicted_to_running").map(started(true)))
            .or_else(|| get("Request_departure_time").map(|at_s| Self::Departed { at_s }))
            .or_else(|| get("pinned_time").map(|at_s| Self::Pinned { at_s }))
            .or_else(|| get("unpinned_time").map(|at_s| Self::Unpinned { at_s }))
            .or_else(|| {
                get("Request_evicted_from_running_queue_time").map(|at_s| Self::Evicted { at_s })
            })
            .ok_or_else(|| D::Error::custom(format!("no known event in {fields:?}")))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and lengths are neither"
)]
const fn whole(value: f64) -> u64 {
    value as u64
}

/// Reads `scheduler_timestamps`, one JSON object with a list for each job, and hands on job by job.
pub struct SchedulerTimestamps<F>(pub F);

impl<F> fmt::Debug for SchedulerTimestamps<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerTimestamps")
            .finish_non_exhaustive()
    }
}

impl<'de, F: FnMut(String, Vec<SchedulerEvent>)> DeserializeSeed<'de> for SchedulerTimestamps<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(String, Vec<SchedulerEvent>)> Visitor<'de> for SchedulerTimestamps<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a list of events for each job")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((job, events)) = map.next_entry()? {
            (self.0)(job, events);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_events_are_read_in_order() {
        let text = r#"{"tau2:retail:0:00": [
            {"Request_arrival_time": 20.5}, {"waiting_to_running": 20.6, "prompt_length": 3100, "hit_length": 16},
            {"Request_evicted_from_running_queue_time": 21}, {"evicted_to_running": 22, "prompt_length": 1, "hit_length": 1},
            {"Request_departure_time": 31.0}, {"pinned_time": 31.0}, {"unpinned_time": 33.0}]}"#;
        let mut jobs = Vec::new();
        let mut json = serde_json::Deserializer::from_str(text);
        let seed = SchedulerTimestamps(|job, events| jobs.push((job, events)));
        seed.deserialize(&mut json).unwrap();
        let [(job, events)] = &jobs[..] else {
            panic!("{jobs:?}")
        };
        assert_eq!(job, "tau2:retail:0:00");
        let expected = [
            SchedulerEvent::Arrived { at_s: 20.5 },
            SchedulerEvent::Started {
                at_s: 20.6,
                prompt: 3100,
                hit: 16,
                again: false,
            },
            SchedulerEvent::Evicted { at_s: 21.0 },
            SchedulerEvent::Started {
                at_s: 22.0,
                prompt: 1,
                hit: 1,
                again: true,
            },
            SchedulerEvent::Departed { at_s: 31.0 },
            SchedulerEvent::Pinned { at_s: 31.0 },
            SchedulerEvent::Unpinned { at_s: 33.0 },
        ];
        assert_eq!(events[..], expected);
    }

    #[test]
    fn an_unknown_event_is_named() {
        let error = serde_json::from_str::<SchedulerEvent>(r#"{"slept": 1}"#).unwrap_err();
        assert!(error.to_string().contains("slept"), "{error}");
    }

    #[test]
    fn a_failed_task_has_no_reward() {
        let text = r#"{"domain": "retail", "task_id": "5", "trial": 0, "status": "error", "reward": null}"#;
        assert_eq!(
            serde_json::from_str::<TaskResult>(text).unwrap().reward,
            None
        );
    }
}

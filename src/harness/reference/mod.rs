//! The reference experiment: its run directories, and what its scripts printed of them.
//!
//! | file of a run | read by | gives |
//! |---|---|---|
//! | `driver.log` | [`files::driver_events`] | [`driver_log::Event`] |
//! | `logs/tau2_global.log` | [`files::profile_records`] | [`profile::Record`] |
//! | `kv_cache_timeseries.csv` | [`files::kv_rows`] | [`kv::Row`] |
//! | `outputs/metrics_global.json` | [`files::metrics`] | [`outputs::Metrics`] |
//! | `outputs/all_domains/*.json` | [`files::task_results`] | [`outputs::TaskResult`] |
//! | `scheduler_timestamps` | [`files::scheduler_timestamps`] | [`outputs::SchedulerEvent`] |
//!
//! All are read as a stream, in memory that does not grow with the file. Times in the logs are a wall clock's, and
//! become moments by a [`local_time::Zone`]: of the process, as in the scripts, or from the offset that the samples
//! carry ([`kv::Row::offset_s`]).

pub mod driver_log;
pub mod files;
pub mod kv;
pub mod lines;
pub mod local_time;
pub mod outputs;
pub mod profile;
pub mod python;
pub mod scripts;

//! The experiment: programs played through a gate, policy by policy, and everything that is needed to trust it.
//!
//! `kvgate experiment run` plays one cell, `matrix` policies × concurrencies × repeats; `status`, `stop` and `resume`
//! work on the directory of either. [`spec`] is what was asked for, [`preflight`] whether it can be done, [`engine`]
//! what serves the model, [`cell`] one run from start to report, [`matrix`] the order of cells and what is left of
//! it, [`watchdog`] when to stop waiting, [`manifest`] how it was made, [`state`] what another process may know of it,
//! which [`status`] prints and [`stop`] goes by; [`detach`] and [`console`] are what outlives a terminal.

pub mod cell;
pub mod console;
pub mod detach;
pub mod engine;
pub mod gpu;
pub mod machine;
pub mod manifest;
pub mod matrix;
pub mod oss;
pub mod preflight;
pub mod process;
pub mod results;
pub mod spec;
pub mod state;
pub mod status;
pub mod stop;
pub mod watch;
pub mod watchdog;
pub mod workload;

//! Experiments: a modelled engine, a workload replayed through a gate, and the comparison.
//!
//! Speaks HTTP to a gate and never imports it: a run starts `kvgate serve` as a child process, so that what is
//! measured is what is shipped.

pub mod calibrate;
pub mod child;
pub mod cost_file;
pub mod digest;
pub mod engine;
pub mod experiment;
pub mod group;
pub mod journal;
pub mod measure;
pub mod page;
pub mod quickstart;
pub mod reference;
pub mod replay;
pub mod report;
pub mod run;
pub mod rundir;
pub mod simulate;
pub mod simulator;
pub mod stats;
pub mod stdout;
pub mod tau2;
pub mod trace;
pub mod traces;
pub mod vectors;
pub mod window;

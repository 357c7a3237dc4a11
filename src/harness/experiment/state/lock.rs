//! One directory, one player.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, bail};

/// The file that is locked; its content is the id of the process that holds it.
pub const FILE: &str = "experiment.lock";

/// The right to play in a directory. The kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    /// Locked as long as it is open.
    _file: File,
}

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// When another process has it, or the file cannot be made; the message says which and what to do.
    pub fn take(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let mut options = File::options();
        let opened = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = opened.with_context(|| format!("cannot make {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _unknown = file.read_to_string(&mut holder);
                let dir = dir.display();
                bail!(
                    "{dir} is being played by process {}: see `kvgate experiment status {dir}`, end it with \
                     `kvgate experiment stop {dir}`, or choose another directory",
                    holder.trim()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context(format!("cannot lock {}", path.display()));
            }
        }
        // The lock holds without the number, as on a full disk.
        let _unsaid = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_in_one_directory_is_told_who_plays_there_and_the_next_one_may() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let error = Lock::take(dir.path()).unwrap_err().to_string();
        let id = std::process::id().to_string();
        assert!(
            error.contains(&id) && error.contains("experiment stop"),
            "{error}"
        );
        drop(first);
        Lock::take(dir.path()).unwrap();
        let written = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(written, id);
    }

    #[test]
    fn a_directory_that_is_gone_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Lock::take(&dir.path().join("gone")).unwrap_err();
        assert!(
            format!("{error:#}").contains("gone/experiment.lock"),
            "{error:#}"
        );
    }
}

//! Standard output of commands whose result is text.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context as _;

/// Writes `text` to standard output. A reader that closed its end has seen enough: that is no error.
///
/// # Errors
/// When the text cannot be written, as on a full disk.
pub fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        said => said,
    }
}

/// Standard output as a file, if that is what `path` names, as `/dev/stdout` does. Opened anew, a file that it was sent
/// to would be written from two places at once.
pub fn at(path: &Path) -> Option<File> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned().ok()?);
    let (named, own) = (fs::metadata(path).ok()?, file.metadata().ok()?);
    let is_same = (named.dev(), named.ino()) == (own.dev(), own.ino());
    is_same.then_some(file)
}

/// Whether what is written to `path` stays there: it is, or will be, a regular file, and not standard output. Anything
/// else is written only: reading a pipe or a terminal would wait for whoever writes there.
pub fn is_kept(path: &Path) -> bool {
    at(path).is_none() && (path.is_file() || !path.exists())
}

/// Writes a command's file and says something about it; nothing but the file where that is standard output, from which
/// somebody is about to read it.
///
/// # Errors
/// When either cannot be written; the message names the file.
pub fn write(path: &Path, text: &str, about: &str) -> anyhow::Result<()> {
    if at(path).is_some() {
        return Ok(say(text)?);
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(say(about)?)
}

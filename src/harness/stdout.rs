//! Standard output of commands whose result is text.

use std::io::{self, ErrorKind, Write as _};

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

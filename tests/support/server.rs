//! A server process of a test: started, asked where it listens, ended with the test.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A server that is killed when the test is over.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    /// Starts a command that says where it listens.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let output = child.stdout.take().expect("its output is piped");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let said = |line: String| line.strip_prefix("listening on ").map(str::to_owned);
        let url = lines.find_map(said);
        Self {
            child,
            url: url.expect("the server says where it listens"),
        }
    }
}

//! What runs the driver: the user's Python, or the one of the managed installation of tau2, whose packages are those
//! that the fork needs too.

use std::path::{Path, PathBuf};

use crate::harness::tau2::environment::Environment;

/// Where the fork looks for a domain's data, below the checkout; the first folder that is there counts.
const DATA: [&str; 2] = ["evaluation/data_dir", "data"];
/// What copies of the fork lack, as it is too large for some hosts.
const AIRLINE: &str = "tau2/domains/airline/db.json";

/// What runs the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Python {
    /// The interpreter.
    pub interpreter: PathBuf,
    /// Data of an installed tau2, the same bytes as the fork's, in place of a checkout's that are not whole.
    pub data: Option<PathBuf>,
}

impl Python {
    /// The user's own interpreter, else the managed one in `cache`, which is installed if it is needed and not there:
    /// one to two minutes and 500 MB, with a network. It also supplies what the checkout lacks of the data. Blocks.
    ///
    /// # Errors
    /// When the installation fails; the message says what helps.
    pub fn find(
        checkout: &Path,
        domains: &[String],
        own: Option<&Path>,
        cache: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Self> {
        let airline = domains.iter().any(|domain| domain == "airline");
        let lacks = airline && !data(checkout).join(AIRLINE).exists();
        let mut found = Self {
            // Its folder's links are left alone: they make it a virtual environment's.
            interpreter: own
                .map(std::path::absolute)
                .transpose()?
                .unwrap_or_default(),
            data: None,
        };
        if own.is_none() || lacks {
            let managed = Environment::install(cache, progress)?;
            if own.is_none() {
                found.interpreter = managed.python;
            }
            found.data = lacks.then_some(managed.data);
        }
        Ok(found)
    }
}

/// The folder of a checkout's data.
pub(super) fn data(checkout: &Path) -> PathBuf {
    let folders = DATA.map(|folder| checkout.join(folder));
    let found = folders.iter().find(|folder| folder.is_dir());
    found.unwrap_or(&folders[1]).clone()
}

//! The state of a checkout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::harness::digest;
use crate::harness::experiment::machine;

/// What stands in a checkout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Git {
    /// The folder that was asked, somewhere inside.
    pub folder: PathBuf,
    /// The commit.
    pub head: String,
    /// The commit by the nearest tag, if there is one.
    pub describe: Option<String>,
    /// Files that are not as the commit has them, those it does not know included.
    pub dirty: usize,
    /// SHA-256 of the difference to the commit, if there is one.
    pub diff_sha256: Option<String>,
}

impl Git {
    /// Asks git; `None` without git, and where nothing is checked out.
    pub async fn of(folder: &Path) -> Option<Self> {
        // A repository's own settings must not change what is said, nor make git wait for somebody.
        let ask = async |args: &[&str]| {
            machine::output(Path::new("git"), args, Some(folder))
                .await
                .ok()
        };
        let head = ask(&["rev-parse", "HEAD"]).await?;
        let status = ask(&["--no-optional-locks", "status", "--porcelain"]).await?;
        let dirty = status.lines().count();
        let diff = match dirty {
            0 => None,
            _ => ask(&["diff", "HEAD", "--no-ext-diff", "--no-color", "--binary"]).await,
        };
        Some(Self {
            folder: folder.to_owned(),
            head,
            describe: ask(&["describe", "--tags", "--always"]).await,
            dirty,
            diff_sha256: diff
                .filter(|diff| !diff.is_empty())
                .map(|diff| digest::sha256(diff.as_bytes())),
        })
    }
}

/// Asks them all at once; those that are no checkouts are left out.
pub(super) async fn all(folders: &BTreeMap<String, PathBuf>) -> BTreeMap<String, Git> {
    let asked = folders
        .iter()
        .map(async |(name, folder)| Some((name.clone(), Git::of(folder).await?)));
    join_all(asked).await.into_iter().flatten().collect()
}

/// What changed between two looks, in one line. Pure.
pub(super) fn change(name: &str, before: &Git, now: Option<&Git>) -> Option<String> {
    let Some(now) = now else {
        return Some(format!("git {name}: it can no longer be asked"));
    };
    if now.head != before.head {
        return Some(format!(
            "git {name}: {} is checked out, and was {}",
            now.head, before.head
        ));
    }
    if (now.dirty, &now.diff_sha256) != (before.dirty, &before.diff_sha256) {
        let counts = (before.dirty, now.dirty);
        return Some(format!(
            "git {name}: its files changed; {} differed from the commit, and {} do",
            counts.0, counts.1
        ));
    }
    None
}

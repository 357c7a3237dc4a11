//! What a run's figures were made from: its manifest as written, and size and SHA-256 of every file.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use super::load::own;
use crate::harness::digest::Digest;

/// The files of one run directory.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Artifacts {
    /// `manifest.json` as it is: flags, versions and, where it was recorded, the state of the repository.
    pub manifest: Option<Value>,
    /// Every file, by path.
    pub files: Vec<Artifact>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// Path inside the run directory, with forward slashes.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
}

impl Artifacts {
    /// Reads every file of `dir`, as a stream; links are not followed.
    ///
    /// # Errors
    /// When one cannot be read; the message names it.
    pub fn of(dir: &Path) -> anyhow::Result<Self> {
        let mut paths = Vec::new();
        walk(dir, &mut paths)?;
        paths.sort();
        let artifact = |path: &PathBuf| artifact(dir, path);
        Ok(Self {
            manifest: own::manifest_json(dir),
            files: paths.iter().map(artifact).collect::<Result<_, _>>()?,
        })
    }

    /// What the manifest says that identifies the run, as name and value; what stands inside something has the names of
    /// both, as in `git.tau2.head`.
    pub fn facts(&self) -> Vec<(String, String)> {
        let mut facts = Vec::new();
        if let Some(manifest) = &self.manifest {
            flatten("", manifest, &mut facts);
        }
        facts
    }
}

fn flatten(name: &str, value: &Value, facts: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(entries) => {
            for (inner, value) in entries {
                let dot = if name.is_empty() { "" } else { "." };
                flatten(&format!("{name}{dot}{inner}"), value, facts);
            }
        }
        Value::String(text) => facts.push((name.to_owned(), text.clone())),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            facts.push((name.to_owned(), value.to_string()));
        }
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let read = || format!("cannot list {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(read)? {
        let entry = entry.with_context(read)?;
        let kind = entry.file_type().with_context(read)?;
        if kind.is_dir() {
            walk(&entry.path(), found)?;
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn artifact(dir: &Path, path: &Path) -> anyhow::Result<Artifact> {
    let digest = Digest::of_file(path)?;
    let inside = path.strip_prefix(dir).unwrap_or(path);
    Ok(Artifact {
        path: inside.to_string_lossy().replace('\\', "/"),
        bytes: digest.bytes,
        sha256: digest.sha256,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_listed_with_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        std::fs::write(dir.path().join("logs/a.log"), "abc").unwrap();
        std::fs::write(
            dir.path().join("manifest.json"),
            r#"{"seed":1,"git":{"tau2":{"head":"b3013","dirty":2}},"x":null}"#,
        )
        .unwrap();
        let artifacts = Artifacts::of(dir.path()).unwrap();
        // The digest of "abc": FIPS 180-2, appendix B.1.
        assert_eq!(
            artifacts.files[0],
            Artifact {
                path: "logs/a.log".to_owned(),
                bytes: 3,
                sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
                    .to_owned(),
            }
        );
        assert_eq!(artifacts.files.len(), 2);
        let facts = [
            ("git.tau2.dirty", "2"),
            ("git.tau2.head", "b3013"),
            ("seed", "1"),
        ];
        assert_eq!(
            artifacts.facts(),
            facts.map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
    }
}

//! An upstream checkout of tau2-bench: whether it is whole, and an environment of what it needs. Nothing is written
//! into it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::hash;
use super::venv::{Recipe, python_of};

/// What the package is described by.
const PROJECT: &str = "pyproject.toml";
/// Files of a whole checkout; some snapshots leave out the large ones.
const FILES: [&str; 6] = [
    "src/tau2/__init__.py",
    "data/tau2/domains/retail/db.json",
    "data/tau2/domains/retail/tasks.json",
    "data/tau2/domains/airline/db.json",
    "data/tau2/domains/airline/tasks.json",
    "data/tau2/domains/telecom/tasks.json",
];
/// Upstream needs Python 3.12.
const MINOR: u8 = 12;

/// A checkout that is whole.
#[derive(Debug)]
pub(super) struct Checkout {
    /// Where its code is.
    pub(super) source: PathBuf,
    /// Where its data are.
    pub(super) data: PathBuf,
    /// Package and version.
    pub(super) version: String,
    /// What it needs, one a line.
    packages: String,
}

#[derive(Deserialize)]
struct Description {
    project: Project,
}

#[derive(Deserialize)]
struct Project {
    name: String,
    version: String,
    dependencies: Vec<String>,
}

impl Checkout {
    /// Looks at a checkout.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir)?;
        let path = dir.join(PROJECT);
        let text = fs::read_to_string(&path);
        let text = text.with_context(|| {
            format!(
                "{} is no checkout of tau2-bench: cannot read {PROJECT}",
                dir.display()
            )
        })?;
        let description: Description =
            toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
        let project = description.project;
        let missing: Vec<&str> = FILES
            .into_iter()
            .filter(|file| !dir.join(file).exists())
            .collect();
        ensure!(
            missing.is_empty(),
            "the checkout {} lacks {}: clone tau2-bench anew, as snapshots leave out large files",
            dir.display(),
            missing.join(", ")
        );
        Ok(Self {
            source: dir.join("src"),
            data: dir.join("data"),
            version: format!("{} {}", project.name, project.version),
            packages: project.dependencies.join("\n") + "\n",
        })
    }

    /// The interpreter of an environment with the packages that it needs, in the newest versions that it allows on the
    /// day of the installation.
    pub(super) fn install(
        &self,
        cache: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> anyhow::Result<PathBuf> {
        let recipe = Recipe {
            name: format!("tau2-upstream-{}", hash(&self.packages)),
            packages: &self.packages,
            locked: false,
            minor: MINOR,
        };
        // The checkout is loaded by every run anyway.
        recipe.make(cache, progress, |_| Ok(b"{}\n".to_vec()))?;
        Ok(python_of(&cache.join(&recipe.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package that looks like upstream's from outside.
    fn tiny(dir: &Path) {
        for file in FILES {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let project = "[project]\nname = \"tau2\"\nversion = \"1.0.1\"\ndependencies = [\"a>=1\", \"b<2,>=1\"]\n";
        fs::write(dir.join(PROJECT), project).unwrap();
    }

    #[test]
    fn a_checkout_says_its_version_and_what_it_needs() {
        let temp = tempfile::tempdir().unwrap();
        tiny(temp.path());
        let checkout = Checkout::open(temp.path()).unwrap();
        assert_eq!(checkout.version, "tau2 1.0.1");
        assert_eq!(checkout.packages, "a>=1\nb<2,>=1\n");
        assert_eq!(checkout.source, temp.path().join("src"));
    }

    #[test]
    fn every_missing_file_of_a_snapshot_is_named_at_once() {
        let temp = tempfile::tempdir().unwrap();
        tiny(temp.path());
        for lost in ["airline/db.json", "telecom/tasks.json"] {
            fs::remove_file(temp.path().join("data/tau2/domains").join(lost)).unwrap();
        }
        let error = Checkout::open(temp.path()).unwrap_err().to_string();
        for words in [
            "airline/db.json",
            "telecom/tasks.json",
            "clone tau2-bench anew",
        ] {
            assert!(error.contains(words), "{error}");
        }
        assert!(!error.contains("retail"), "{error}");
    }

    #[test]
    fn a_folder_that_is_no_checkout_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let error = Checkout::open(temp.path()).unwrap_err().to_string();
        assert!(error.contains("no checkout of tau2-bench"), "{error}");
    }
}

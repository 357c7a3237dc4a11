//! Cost presets from files: what `kvgate calibrate` writes and `--cost` reads beside the built-in names.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::engine::core::CostModel;

/// A preset as a TOML file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostFile {
    /// What was measured, for readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// KV capacity of the measured server, in tokens, the null block left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_tokens: Option<u64>,
    /// The constants.
    pub cost: CostModel,
}

/// The preset called `name`, or the one in the file at that path.
///
/// # Errors
/// Names the known presets, or the file and the key to mend.
pub fn load(name: &str) -> anyhow::Result<CostModel> {
    if let Some(cost) = CostModel::by_name(name) {
        return Ok(cost);
    }
    let path = Path::new(name);
    if !path.exists() {
        let names: Vec<_> = CostModel::PRESETS.iter().map(|(name, _)| *name).collect();
        bail!(
            "--cost: no preset {name:?}, and no such file; choose from {}, or name a file that kvgate calibrate wrote",
            names.join(", ")
        );
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("--cost: {name}"))?;
    let file: CostFile = toml::from_str(&text).with_context(|| format!("--cost: {name}"))?;
    for (key, value) in file.cost.constants() {
        ensure!(
            value.is_finite() && value >= 0.0,
            "--cost: {name}: cost.{key} is {value}; it must be 0 or more"
        );
    }
    ensure!(
        file.cost.iteration_s + file.cost.weights_s > 0.0,
        "--cost: {name}: cost.iteration_s and cost.weights_s are both 0: an iteration would take no time"
    );
    Ok(file.cost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::engine::core::cost::H100_QWEN3_8B;

    fn written(text: &str) -> anyhow::Result<CostModel> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("cost.toml");
        std::fs::write(&path, text)?;
        load(&path.display().to_string())
    }

    #[test]
    fn a_preset_reads_back_from_a_file() {
        let file = CostFile {
            about: Some("an H100".to_owned()),
            kv_tokens: Some(84_800),
            cost: H100_QWEN3_8B,
        };
        let text = toml::to_string(&file).unwrap();
        assert_eq!(written(&text).unwrap(), H100_QWEN3_8B);
        let negative = text.replace("decode_s = ", "decode_s = -");
        let error = written(&negative).unwrap_err().to_string();
        assert!(error.contains("cost.decode_s is -0.000129"), "{error}");
        let error = format!(
            "{:#}",
            written(&text.replace("http_s", "htpp_s")).unwrap_err()
        );
        assert!(error.contains("htpp_s"), "{error}");
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        assert_eq!(load("h100-qwen3-8b").unwrap(), H100_QWEN3_8B);
        let error = load("abacus").unwrap_err().to_string();
        assert!(error.contains("h100-qwen3-8b, rtx5090-qwen3-8b"), "{error}");
    }
}

//! What must not stand in a manifest: keys.
//!
//! Three nets, each for what slips through the one before: only listed variables are written; what follows a flag for a
//! key is left out of the command line; and wherever the value of a key turns up, it is replaced.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::tau2::settings::Secret;

/// Stands for what is left out.
const HIDDEN: &str = "***";
/// Words in the names of variables and flags that hold keys.
const TELLING: [&str; 6] = ["key", "token", "secret", "passw", "credential", "auth"];
/// A shorter value is no key, and would be found everywhere: many servers are content with `x`.
const SHORTEST: usize = 6;
/// Variables that change what programs do, by name or by the beginning of it.
const LISTED: [&str; 22] = [
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "LANG",
    "LC_ALL",
    "LITELLM_*",
    "LOGURU_LEVEL",
    "KVGATE_*",
    "NCCL_*",
    "OMP_NUM_THREADS",
    "OPENAI_API_BASE",
    "OPENAI_BASE_URL",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "RAYON_NUM_THREADS",
    "TAU2_*",
    "TOKENIZERS_PARALLELISM",
    "TOKIO_WORKER_THREADS",
    "TRANSFORMERS_OFFLINE",
    "TZ",
    "VLLM_*",
];

/// The variables of this process; what is no UTF-8 is read as far as it is.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// Whether a name says that its value is a key.
fn tells(name: &str) -> bool {
    let name = name.to_lowercase();
    TELLING.iter().any(|word| name.contains(word))
}

/// Of `variables`, those that change what programs do.
pub(super) fn listed(
    variables: impl Iterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let fits = |name: &str| {
        LISTED.iter().any(|listed| match listed.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == *listed,
        })
    };
    variables
        .filter(|(name, _)| fits(name) && !tells(name))
        .collect()
}

/// The values of keys: those of `variables` whose names tell, and `more`.
pub(super) fn values(
    variables: impl Iterator<Item = (String, String)>,
    more: &[Secret],
) -> Vec<String> {
    let told = variables
        .filter(|(name, _)| tells(name))
        .map(|(_, value)| value);
    let mut values: Vec<String> = told
        .chain(more.iter().map(|secret| secret.0.clone()))
        .collect();
    values.retain(|value| value.len() >= SHORTEST);
    // The longest first: one may be a part of another.
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    values
}

/// A command line without what follows a flag for a key, and without passwords in URLs.
///
/// A flag that names the variable of a key, such as `--key-env`, is a flag for a key too; its value is no loss.
pub(super) fn without_keys(command: &[String]) -> Vec<String> {
    let mut hide_next = false;
    let mut shown = Vec::with_capacity(command.len());
    for arg in command {
        if std::mem::take(&mut hide_next) && !arg.starts_with("--") {
            shown.push(HIDDEN.to_owned());
            continue;
        }
        match arg.split_once('=') {
            Some((flag, _)) if flag.starts_with('-') && tells(flag) => {
                shown.push(format!("{flag}={HIDDEN}"));
            }
            _ => {
                hide_next = arg.starts_with("--") && tells(arg);
                shown.push(without_password(arg));
            }
        }
    }
    shown
}

/// `http://USER:PASSWORD@HOST` with both hidden.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let host_end = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(host_end);
    match host.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{HIDDEN}@{host}{path}"),
        None => text.to_owned(),
    }
}

/// Replaces every one of `secrets` in the texts of `value`, and passwords in its URLs.
pub(super) fn scrub(value: &mut Value, secrets: &[String]) {
    match value {
        Value::String(text) => {
            *text = without_password(text);
            for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
                if text.contains(secret.as_str()) {
                    *text = text.replace(secret.as_str(), HIDDEN);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| scrub(value, secrets)),
        Value::Object(entries) => entries.values_mut().for_each(|value| scrub(value, secrets)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pairs(list: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        list.iter().map(owned).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn only_listed_variables_are_written_and_no_key_among_them() {
        let all = pairs(&[
            ("TZ", "UTC"),
            ("VLLM_USE_V1", "1"),
            ("VLLM_API_KEY", "sk-123456"),
            ("HOSTNAME", "h"),
        ]);
        let kept: Vec<String> = listed(all).into_keys().collect();
        assert_eq!(kept, ["TZ", "VLLM_USE_V1"]);
    }

    #[test]
    fn what_follows_a_flag_for_a_key_is_left_out_of_the_command() {
        let command = [
            "run",
            "--api-key",
            "sk-123456",
            "--hf-token=abc",
            "--auth",
            "--tasks",
            "4",
        ];
        let shown = without_keys(&command.map(str::to_owned));
        assert_eq!(
            shown,
            [
                "run",
                "--api-key",
                "***",
                "--hf-token=***",
                "--auth",
                "--tasks",
                "4"
            ]
        );
        let url = without_keys(&["http://me:pw@host/v1".to_owned(), "a@b".to_owned()]);
        assert_eq!(url, ["http://***@host/v1", "a@b"]);
    }

    #[test]
    fn a_key_is_replaced_wherever_it_turns_up() {
        let all = pairs(&[
            ("OPENAI_API_KEY", "sk-123456"),
            ("MY_TOKEN", "x"),
            ("OTHER", "plain-value"),
        ]);
        let known = values(all, &[Secret("sk-123456-long".to_owned())]);
        assert_eq!(known, ["sk-123456-long", "sk-123456"]);
        let mut value = json!({"a": ["Bearer sk-123456", {"b": "sk-123456-long", "c": "x plain-value"}], "n": 1});
        scrub(&mut value, &known);
        assert_eq!(
            value,
            json!({"a": ["Bearer ***", {"b": "***", "c": "x plain-value"}], "n": 1})
        );
    }
}

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
/// Flags whose values are words of another program's command line.
const HANDED_ON: [&str; 2] = ["--vllm-arg", "--ssh-arg"];
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

/// Whether a name says that its value is a key. A model's tokens are none: how many of them, as in `--max-tokens`, or
/// what makes them, as in `TOKENIZERS_PARALLELISM`.
fn tells(name: &str) -> bool {
    let name = name.to_lowercase().replace("tokenizer", "");
    let counts = name.contains("max") && name.ends_with("tokens");
    !counts && TELLING.iter().any(|word| name.contains(word))
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

/// A command line without keys: none of the known `secrets`, and nothing that only a flag before it tells.
pub(super) fn clean(command: &[String], secrets: &[String]) -> Vec<String> {
    let mut words = without_keys(command);
    for word in &mut words {
        hide(word, secrets);
    }
    words
}

/// A command line without what follows a flag for a key, and without passwords in URLs.
///
/// A flag that names the variable of a key, such as `--key-env`, is a flag for a key too; its value is no loss.
pub(super) fn without_keys(command: &[String]) -> Vec<String> {
    let mut hide_next = false;
    let shown = |word: &String| shown(word, &mut hide_next);
    command.iter().map(shown).collect()
}

/// A word of a command line as it is written. `hide_next` says that the word before was a flag for a key, and is told
/// whether this one is.
fn shown(word: &str, hide_next: &mut bool) -> String {
    if HANDED_ON.contains(&word) {
        return word.to_owned();
    }
    if let Some((flag, rest)) = word.split_once('=')
        && HANDED_ON.contains(&flag)
    {
        return format!("{flag}={}", shown(rest, hide_next));
    }
    if std::mem::take(hide_next) && !word.starts_with("--") {
        return HIDDEN.to_owned();
    }
    let flag = word.split_once('=').map(|(flag, _)| flag);
    if let Some(flag) =
        flag.filter(|flag| flag.starts_with('-') && !has_spaces(flag) && tells(flag))
    {
        return format!("{flag}={HIDDEN}");
    }
    if has_spaces(word) {
        // A command line in one word, such as `--api-key KEY`, or a text, which stays as it is.
        let words: Vec<&str> = word.split_whitespace().collect();
        let clean: Vec<String> = words.iter().map(|word| shown(word, hide_next)).collect();
        return if clean == words {
            word.to_owned()
        } else {
            clean.join(" ")
        };
    }
    *hide_next = word.starts_with("--") && tells(word);
    without_password(word)
}

fn has_spaces(text: &str) -> bool {
    text.contains(char::is_whitespace)
}

/// Replaces every one of `secrets` in a text.
fn hide(text: &mut String, secrets: &[String]) {
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        if text.contains(secret.as_str()) {
            *text = text.replace(secret.as_str(), HIDDEN);
        }
    }
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

/// Replaces every one of `secrets` in the texts of `value`, what follows a flag for a key in its command lines, and
/// passwords in its URLs.
pub(super) fn scrub(value: &mut Value, secrets: &[String]) {
    match value {
        Value::String(text) => {
            *text = shown(text, &mut false);
            hide(text, secrets);
        }
        Value::Array(values) => {
            // A list of words may be a command line, as of an engine.
            let words = values.iter().map(|value| value.as_str().map(str::to_owned));
            match words.collect::<Option<Vec<String>>>() {
                Some(words) => {
                    *values = clean(&words, secrets)
                        .into_iter()
                        .map(Value::from)
                        .collect();
                }
                None => values.iter_mut().for_each(|value| scrub(value, secrets)),
            }
        }
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
            ("TOKENIZERS_PARALLELISM", "false"),
            ("VLLM_USE_V1", "1"),
            ("VLLM_API_KEY", "sk-123456"),
            ("VLLM_TOKEN", "sk-123456"),
            ("HOSTNAME", "h"),
        ]);
        let kept: Vec<String> = listed(all).into_keys().collect();
        assert_eq!(kept, ["TOKENIZERS_PARALLELISM", "TZ", "VLLM_USE_V1"]);
    }

    #[test]
    fn how_many_tokens_a_model_may_make_is_no_key() {
        let command = ["--max-tokens", "24", "--max-num-batched-tokens=8192"].map(str::to_owned);
        assert_eq!(without_keys(&command), command);
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
    fn what_is_handed_on_to_another_program_hides_its_keys_too() {
        let lines = [
            (
                "--vllm-arg|--api-key sk-123456|--tasks|4",
                "--vllm-arg|--api-key ***|--tasks|4",
            ),
            (
                "--vllm-arg=--api-key sk-123456|4",
                "--vllm-arg=--api-key ***|4",
            ),
            (
                "--vllm-arg=--api-key=sk-123456|4",
                "--vllm-arg=--api-key=***|4",
            ),
            (
                "--vllm-arg=--api-key|--vllm-arg=sk-123456|4",
                "--vllm-arg=--api-key|--vllm-arg=***|4",
            ),
            (
                "--vllm-arg|--api-key|--vllm-arg|sk-123456|4",
                "--vllm-arg|--api-key|--vllm-arg|***|4",
            ),
            ("a  text of a key", "a  text of a key"),
        ];
        let words = |line: &str| line.split('|').map(str::to_owned).collect::<Vec<_>>();
        for (line, expected) in lines {
            assert_eq!(without_keys(&words(line)), words(expected));
        }
        let mut spec =
            json!({"vllm_arg": ["--api-key", "sk-123456"], "run": "serve --api-key sk-123456"});
        scrub(&mut spec, &[]);
        assert_eq!(
            spec,
            json!({"vllm_arg": ["--api-key", "***"], "run": "serve --api-key ***"})
        );
    }

    #[test]
    fn a_known_key_is_left_out_of_the_command_wherever_it_stands() {
        let command = ["--header", "Bearer sk-123456", "--tasks"].map(str::to_owned);
        let known = ["sk-123456".to_owned()];
        assert_eq!(
            clean(&command, &known),
            ["--header", "Bearer ***", "--tasks"]
        );
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

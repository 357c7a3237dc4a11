//! Which program a request belongs to, from whatever its client already sends.
//!
//! An ordered, configurable list of [`Source`]s; the first that names a program wins. The default list covers
//! the program fields of ThunderAgent and the reference router (`program_id`, `job_id`), vLLM's own
//! `session_id`, vllm-router's `agentic_context`, Dynamo's `nvext.agent_context`, and the session headers of the
//! common coding agents. To accept another header, add a line to [`DEFAULT_SOURCES`].
//!
//! Null, empty and missing all mean "no program": such a request passes through and is never pooled with others.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::{HeaderMap, HeaderName};

use super::scan;

/// The longest program name accepted, in bytes; a longer one is refused with status 400.
pub const MAX_NAME_BYTES: usize = 1024;

/// The sources read when none are configured, in order of precedence.
pub const DEFAULT_SOURCES: &[&str] = &[
    "header:x-program-id",
    "body:program_id",
    "body:job_id",
    "body:extra_body.program_id",
    "body:extra_body.job_id",
    "body:vllm_xargs.agentic_context.program_id",
    "body:vllm_xargs.agentic_context.session_id",
    "body:vllm_xargs.program_id",
    "body:vllm_xargs.job_id",
    "body:nvext.agent_context.program_id",
    "body:nvext.agent_context.trajectory_id",
    "body:nvext.agent_context.session_id",
    "body:session_id",
    "body:extra_body.session_id",
    "body:vllm_xargs.session_id",
    "header:x-dynamo-session-id",
    "header:x-session-id",
    "header:session-id",
    "header:session_id",
    "header:thread-id",
    "header:x-session-affinity",
    "header:x-claude-code-session-id+x-claude-code-agent-id",
    "header:x-smg-routing-key",
    "header:x-litellm-session-id",
    "header:x-llm-d-inference-fairness-id",
];

/// One place where a client may name its program.
///
/// Written as `header:NAME`, `header:NAME+NAME` (a session and, where present, the agent within it), or
/// `body:KEY.KEY` (a path through the JSON body).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A request header, optionally narrowed by a second one.
    Header(HeaderName, Option<HeaderName>),
    /// A path of keys into the body.
    Body(Vec<String>),
}

impl Source {
    /// The default list, parsed.
    pub fn defaults() -> Vec<Self> {
        DEFAULT_SOURCES
            .iter()
            .filter_map(|source| source.parse().ok())
            .collect()
    }

    /// The program this source names, if it names one. `member` gives the value of a top-level key of the body.
    pub fn read<'a>(
        &self,
        headers: &'a HeaderMap,
        member: impl Fn(&str) -> Option<&'a [u8]>,
    ) -> Option<Cow<'a, str>> {
        match self {
            Self::Header(name, narrower) => {
                let session = header(headers, name)?;
                match narrower.as_ref().and_then(|name| header(headers, name)) {
                    Some(agent) => Some(Cow::Owned(format!("{session}/{agent}"))),
                    None => Some(Cow::Borrowed(session)),
                }
            }
            Self::Body(path) => {
                let (key, rest) = path.split_first()?;
                descend(member(key)?, rest)
            }
        }
    }

    /// The first key of a body source: what a scan of the top level has to look for.
    pub fn body_key(&self) -> Option<&str> {
        match self {
            Self::Header(..) => None,
            Self::Body(path) => path.first().map(String::as_str),
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then_some(value)
}

/// Follows `path` from `value` through nested objects. A value that is itself JSON in a string, as `vllm_xargs`
/// carries objects, is followed inside.
fn descend<'a>(value: &'a [u8], path: &[String]) -> Option<Cow<'a, str>> {
    let Some((key, rest)) = path.split_first() else {
        return scan::scalar(value);
    };
    if value.first() == Some(&b'"') {
        let inner = scan::scalar(value)?;
        return descend(inner.as_bytes(), path).map(|name| Cow::Owned(name.into_owned()));
    }
    descend(scan::find(value, key.as_bytes())?, rest)
}

/// A source that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("identity source {0:?}: write header:NAME, header:NAME+NAME or body:KEY.KEY")]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let wrong = || SourceError(text.to_owned());
        let header = |name: &str| name.parse::<HeaderName>().map_err(|_| wrong());
        match text.split_once(':') {
            Some(("header", names)) => match names.split_once('+') {
                Some((name, narrower)) => Ok(Self::Header(header(name)?, Some(header(narrower)?))),
                None => Ok(Self::Header(header(names)?, None)),
            },
            Some(("body", path)) if path.split('.').all(|key| !key.is_empty()) => {
                Ok(Self::Body(path.split('.').map(str::to_owned).collect()))
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name, None) => write!(f, "header:{name}"),
            Self::Header(name, Some(narrower)) => write!(f, "header:{name}+{narrower}"),
            Self::Body(path) => write!(f, "body:{}", path.join(".")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str, headers: &[(&'static str, &str)], body: &str) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let source: Source = source.parse().unwrap();
        source
            .read(&map, |key| scan::find(body.as_bytes(), key.as_bytes()))
            .map(Cow::into_owned)
    }

    #[test]
    fn every_default_source_is_well_formed_and_prints_as_written() {
        let sources = Source::defaults();
        assert_eq!(sources.len(), DEFAULT_SOURCES.len());
        for (source, text) in sources.iter().zip(DEFAULT_SOURCES) {
            assert_eq!(&source.to_string(), text);
        }
    }

    #[test]
    fn a_nested_field_is_found_as_an_object_or_as_json_in_a_string() {
        let source = "body:vllm_xargs.agentic_context.program_id";
        let object = r#"{"vllm_xargs":{"agentic_context":{"program_id":"p1"}}}"#;
        let string = r#"{"vllm_xargs":{"agentic_context":"{\"program_id\":\"p1\"}"}}"#;
        assert_eq!(read(source, &[], object).as_deref(), Some("p1"));
        assert_eq!(read(source, &[], string).as_deref(), Some("p1"));
    }

    #[test]
    fn null_empty_and_missing_name_no_program() {
        for body in [
            r#"{"job_id":null}"#,
            r#"{"job_id":""}"#,
            "{}",
            r#"{"job_id":{}}"#,
        ] {
            assert_eq!(read("body:job_id", &[], body), None, "{body}");
        }
        assert_eq!(
            read("header:x-session-id", &[("x-session-id", "  ")], "{}"),
            None
        );
    }

    #[test]
    fn a_sub_agent_is_a_program_of_its_own() {
        let source = "header:x-claude-code-session-id+x-claude-code-agent-id";
        let session = ("x-claude-code-session-id", "s");
        assert_eq!(read(source, &[session], "{}").as_deref(), Some("s"));
        let agent = ("x-claude-code-agent-id", "a");
        assert_eq!(
            read(source, &[session, agent], "{}").as_deref(),
            Some("s/a")
        );
    }

    #[test]
    fn a_malformed_source_says_how_to_write_one() {
        for text in [
            "program_id",
            "body:",
            "body:a..b",
            "header:two words",
            "cookie:x",
        ] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}

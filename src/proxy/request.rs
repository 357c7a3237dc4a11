//! A borrowed view of an OpenAI-style request: the few fields the gate needs, and where usage must be asked for.
//!
//! The body's bytes are never re-serialised. When the gate has to ask for usage in a stream whose client did not,
//! [`UsageSplice`] names one range of the body and the bytes that go there; everything else is sent as it came.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderMap;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::identity::{MAX_NAME_BYTES, Source};
use super::scan::{self, Member, Members, ScanError};

/// Which API a generation request speaks: they differ in where usage is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions` and `/v1/completions`: a stream reports usage only when asked.
    Completions,
    /// `/v1/responses` and `/v1/messages`: usage is part of every stream.
    Messages,
}

impl Api {
    /// The API of a path that generates tokens, and that path for records; `None` for every other path.
    pub fn of_path(path: &str) -> Option<(Self, &'static str)> {
        const PATHS: [(Api, &str); 4] = [
            (Api::Completions, "/v1/chat/completions"),
            (Api::Completions, "/v1/completions"),
            (Api::Messages, "/v1/responses"),
            (Api::Messages, "/v1/messages"),
        ];
        PATHS.into_iter().find(|(_, known)| *known == path)
    }
}

/// What the gate reads from a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestView {
    /// The `model` field, if it is a non-empty string.
    pub model: Option<String>,
    /// The client asked for a stream.
    pub stream: bool,
    /// The program's name; `None` means "no program".
    pub program: Option<String>,
    /// The client said that this is the program's last step.
    pub last_step: bool,
    /// The leading part of the prompt that programs of one kind share.
    pub shared: Option<SharedBytes>,
    /// Where the value of `messages` stands in the body.
    pub messages: Option<Range<usize>>,
    /// Where the value of `seed` stands in the body.
    pub seed: Option<Range<usize>>,
    /// How to ask for usage; `None` where the client asked, or no stream was asked for.
    pub splice: Option<UsageSplice>,
}

/// Tools and system message of a request: their hash and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedBytes {
    /// Hash of the bytes, equal for equal prefixes.
    pub fingerprint: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Replace `range` of the body by `insert` to ask for usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageSplice {
    /// Byte range of the body that is replaced; often empty.
    pub range: Range<usize>,
    /// What goes there.
    pub insert: &'static [u8],
}

impl UsageSplice {
    /// The body with the splice made: at most three slices, no copy.
    pub fn apply(&self, body: &Bytes) -> [Bytes; 3] {
        [
            body.slice(..self.range.start),
            Bytes::from_static(self.insert),
            body.slice(self.range.end..),
        ]
    }
}

/// Why a request cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The body is not a JSON object.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The program's name is longer than [`MAX_NAME_BYTES`].
    #[error("the program id has {0} bytes; at most 1024 are accepted")]
    NameTooLong(usize),
}

/// Ranges of the top-level members that matter, from one pass over the body.
#[derive(Debug, Default)]
struct TopLevel<'a> {
    model: Option<Range<usize>>,
    stream: Option<Range<usize>>,
    stream_options: Option<Range<usize>>,
    messages: Option<Range<usize>>,
    seed: Option<Range<usize>>,
    tools: Option<Range<usize>>,
    system: Option<Range<usize>>,
    extra_body: Option<Range<usize>>,
    nvext: Option<Range<usize>>,
    is_last_step: Option<Range<usize>>,
    /// Members that an identity source starts from. Few, and none in most bodies.
    identity: Vec<Member<'a>>,
}

impl<'a> TopLevel<'a> {
    fn scan(body: &'a [u8], sources: &[Source]) -> Result<Self, ScanError> {
        let mut top = Self::default();
        for member in Members::new(body) {
            let member = member?;
            if sources.iter().any(|source| {
                source
                    .body_key()
                    .is_some_and(|key| key.as_bytes() == member.key)
            }) {
                top.identity.push(member.clone());
            }
            let slot = match member.key {
                b"model" => &mut top.model,
                b"stream" => &mut top.stream,
                b"stream_options" => &mut top.stream_options,
                b"messages" => &mut top.messages,
                b"seed" => &mut top.seed,
                b"tools" => &mut top.tools,
                b"system" | b"instructions" => &mut top.system,
                b"extra_body" => &mut top.extra_body,
                b"nvext" => &mut top.nvext,
                b"is_last_step" => &mut top.is_last_step,
                _ => continue,
            };
            // A repeated key: the last one counts, as it does for the backend.
            *slot = Some(member.value);
        }
        Ok(top)
    }
}

impl RequestView {
    /// Reads the fields the gate needs from a request's headers and body, in one pass over the body.
    ///
    /// # Errors
    /// [`ViewError`] for a body that is not a JSON object, and for a program name that is too long.
    pub fn parse(
        api: Api,
        headers: &HeaderMap,
        body: &[u8],
        sources: &[Source],
    ) -> Result<Self, ViewError> {
        let top = TopLevel::scan(body, sources)?;
        let value = |range: &Option<Range<usize>>| range.clone().map(|range| &body[range]);
        let stream = value(&top.stream) == Some(b"true");
        let program = program(headers, body, sources, &top.identity)?;
        let asks = api == Api::Completions && stream;
        Ok(Self {
            model: value(&top.model)
                .filter(|v| v.starts_with(b"\""))
                .and_then(scan::scalar)
                .map(Into::into),
            stream,
            program,
            last_step: last_step(
                value(&top.is_last_step),
                value(&top.extra_body),
                value(&top.nvext),
            ),
            shared: shared(value(&top.tools), value(&top.system), value(&top.messages)),
            messages: top.messages,
            seed: top.seed,
            splice: if asks {
                usage_splice(body, top.stream_options)
            } else {
                None
            },
        })
    }
}

fn program(
    headers: &HeaderMap,
    body: &[u8],
    sources: &[Source],
    members: &[Member<'_>],
) -> Result<Option<String>, ViewError> {
    let value = |key: &str| {
        let member = members
            .iter()
            .rfind(|member| member.key == key.as_bytes())?;
        Some(&body[member.value.clone()])
    };
    match sources
        .iter()
        .find_map(|source| source.read(headers, value))
    {
        Some(name) if name.len() > MAX_NAME_BYTES => Err(ViewError::NameTooLong(name.len())),
        name => Ok(name.map(Into::into)),
    }
}

/// Any of the three places that can say so is believed: a stale `false` elsewhere does not undo it.
fn last_step(own: Option<&[u8]>, extra_body: Option<&[u8]>, nvext: Option<&[u8]>) -> bool {
    let is_true = |value: Option<&[u8]>| value == Some(b"true");
    is_true(own)
        || is_true(extra_body.and_then(|extra| scan::find(extra, b"is_last_step")))
        || is_true(
            nvext
                .and_then(|n| scan::find(n, b"agent_context"))
                .and_then(|c| scan::find(c, b"trajectory_final")),
        )
}

/// Tools and system message stand first in a chat template, so programs of one kind share them.
fn shared(
    tools: Option<&[u8]>,
    system: Option<&[u8]>,
    messages: Option<&[u8]>,
) -> Option<SharedBytes> {
    let first = messages.and_then(scan::first_element).filter(|message| {
        let role = scan::find(message, b"role");
        matches!(role, Some(b"\"system\"" | b"\"developer\""))
    });
    let parts = [tools, system, first];
    let bytes = parts
        .iter()
        .flatten()
        .map(|part| part.len() as u64)
        .sum::<u64>();
    if bytes == 0 {
        return None;
    }
    let mut hash = Xxh3::new();
    for part in parts.iter().flatten() {
        hash.update(&xxh3_64(part).to_le_bytes());
    }
    Some(SharedBytes {
        fingerprint: hash.digest(),
        bytes,
    })
}

/// Where to write `include_usage` into a stream request; `None` if the client asks for usage itself.
fn usage_splice(body: &[u8], options: Option<Range<usize>>) -> Option<UsageSplice> {
    let Some(options) = options else {
        let at = Members::body_start(body);
        return Some(UsageSplice {
            range: at..at,
            insert: br#""stream_options":{"include_usage":true},"#,
        });
    };
    let text = &body[options.clone()];
    // Usage on every chunk follows from `include_usage`: a client that did not ask for that gets neither.
    let continuous = scan::find(text, b"continuous_usage_stats") == Some(b"true");
    let asked = scan::find(text, b"include_usage") == Some(b"true");
    if text.first() != Some(&b'{') || (continuous && !asked) {
        return Some(UsageSplice {
            range: options,
            insert: br#"{"include_usage":true}"#,
        });
    }
    let mut empty = true;
    for member in Members::new(text).map_while(Result::ok) {
        empty = false;
        if member.key == b"include_usage" {
            let value = &text[member.value.clone()];
            let range = options.start + member.value.start..options.start + member.value.end;
            return (value != b"true").then_some(UsageSplice {
                range,
                insert: b"true",
            });
        }
    }
    let at = options.start + 1;
    let insert: &[u8] = if empty {
        br#""include_usage":true"#
    } else {
        br#""include_usage":true,"#
    };
    Some(UsageSplice {
        range: at..at,
        insert,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(body: &str) -> RequestView {
        RequestView::parse(
            Api::Completions,
            &HeaderMap::new(),
            body.as_bytes(),
            &Source::defaults(),
        )
        .unwrap()
    }

    fn spliced(body: &str) -> serde_json::Value {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        match view(body).splice {
            Some(splice) => serde_json::from_slice(&splice.apply(&bytes).concat()).unwrap(),
            None => serde_json::from_slice(&bytes).unwrap(),
        }
    }

    #[test]
    fn the_reference_client_is_understood() {
        let view = view(
            r#"{"messages":[{"role":"system","content":"policy"}],"model":"/ckpt/Orchestrator-8B","max_tokens":8000,
               "tools":[{"type":"function"}],"job_id":"tau2:retail:0:46fbbefc","is_last_step":false}"#,
        );
        assert_eq!(view.program.as_deref(), Some("tau2:retail:0:46fbbefc"));
        assert_eq!(view.model.as_deref(), Some("/ckpt/Orchestrator-8B"));
        assert!(!view.stream && !view.last_step && view.splice.is_none());
        assert!(view.shared.is_some());
    }

    #[test]
    fn programs_of_one_kind_share_a_fingerprint_and_others_do_not() {
        let body = |system: &str, user: &str| {
            format!(
                r#"{{"messages":[{{"role":"system","content":"{system}"}},{{"role":"user","content":"{user}"}}]}}"#
            )
        };
        assert_eq!(view(&body("a", "x")).shared, view(&body("a", "y")).shared);
        assert_ne!(view(&body("a", "x")).shared, view(&body("b", "x")).shared);
        assert_eq!(
            view(r#"{"messages":[{"role":"user","content":"x"}]}"#).shared,
            None
        );
    }

    #[test]
    fn usage_is_asked_for_exactly_when_the_client_did_not() {
        for body in [
            r#"{"stream":true}"#,
            r#" { "stream":true,"model":"m"}"#,
            r#"{"stream":true,"stream_options":null}"#,
            r#"{"stream":true,"stream_options":{}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":false,"x":1}}"#,
            r#"{"stream":true,"stream_options":{"continuous_usage_stats":false}}"#,
        ] {
            let before: serde_json::Value = serde_json::from_str(body).unwrap();
            let mut after = spliced(body);
            assert_eq!(after["stream_options"]["include_usage"], true, "{body}");
            // Nothing else changes.
            after["stream_options"] = before["stream_options"].clone();
            let mut expected = before;
            expected["stream_options"] = after["stream_options"].clone();
            assert_eq!(after, expected, "{body}");
        }
        assert_eq!(
            view(r#"{"stream":true,"stream_options":{"include_usage":true}}"#).splice,
            None
        );
        assert_eq!(view(r#"{"stream":false}"#).splice, None);
    }

    #[test]
    fn usage_on_every_chunk_is_not_switched_on_for_a_client_that_did_not_ask_for_usage() {
        let body = r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#;
        assert_eq!(
            spliced(body)["stream_options"],
            serde_json::json!({"include_usage": true})
        );
        let asked = r#"{"stream":true,"stream_options":{"continuous_usage_stats":true,"include_usage":true}}"#;
        assert_eq!(view(asked).splice, None);
    }

    #[test]
    fn the_last_step_is_known_from_any_place_that_says_so() {
        assert!(view(r#"{"is_last_step":true,"extra_body":{"is_last_step":false}}"#).last_step);
        assert!(view(r#"{"extra_body":{"is_last_step":true}}"#).last_step);
        assert!(view(r#"{"nvext":{"agent_context":{"trajectory_final":true}}}"#).last_step);
        assert!(!view(r#"{"is_last_step":null}"#).last_step);
    }

    #[test]
    fn a_header_outranks_the_body_and_a_name_too_long_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert("x-program-id", "from-header".parse().unwrap());
        let parse = |headers: &HeaderMap, body: &str| {
            RequestView::parse(
                Api::Completions,
                headers,
                body.as_bytes(),
                &Source::defaults(),
            )
        };
        let view = parse(&headers, r#"{"program_id":"from-body"}"#).unwrap();
        assert_eq!(view.program.as_deref(), Some("from-header"));
        let long = format!(r#"{{"job_id":"{}"}}"#, "x".repeat(2000));
        assert_eq!(
            parse(&HeaderMap::new(), &long),
            Err(ViewError::NameTooLong(2000))
        );
    }
}

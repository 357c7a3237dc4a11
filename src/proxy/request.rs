//! A borrowed view of an OpenAI-style request: the few fields the gate needs, and where it writes some of its own.
//!
//! The body's bytes are never re-serialised. When the gate has to ask for usage in a stream whose client did not, or
//! forwards a policy's priority, a [`Splice`] names one range of the body and the bytes that go there; everything
//! else is sent as it came.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::identity::{MAX_NAME_BYTES, Source};
use super::scan::{self, Member, Members, ScanError};

/// Which API a generation request speaks: they differ in where usage is reported and priority is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions` and `/v1/completions`: a stream reports usage only when asked.
    Completions,
    /// `/v1/responses`: usage is part of every stream.
    Responses,
    /// `/v1/messages`: as `/v1/responses`, and vLLM reads a priority from [`PRIORITY_HEADER`] only.
    Messages,
}

/// The header that vLLM reads a request's priority from; it outranks the body.
pub const PRIORITY_HEADER: HeaderName = HeaderName::from_static("x-vllm-priority");

impl Api {
    /// The API of a path that generates tokens, and that path for records; `None` for every other path.
    pub fn of_path(path: &str) -> Option<(Self, &'static str)> {
        const PATHS: [(Api, &str); 4] = [
            (Api::Completions, "/v1/chat/completions"),
            (Api::Completions, "/v1/completions"),
            (Api::Responses, "/v1/responses"),
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
    /// How to ask for usage; `None` where the client asked, or no stream was asked for.
    pub splice: Option<Splice>,
    /// Where a priority goes; `None` where the client set its own.
    pub priority: Option<PriorityPlace>,
}

/// Where vLLM reads a request's priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PriorityPlace {
    /// The [`PRIORITY_HEADER`].
    Header,
    /// A first member of the body, which has others behind it.
    Body {
        /// Byte offset just behind the opening brace.
        at: usize,
    },
}

impl PriorityPlace {
    /// Puts `priority` there: into `headers`, or as the splice that has to be made in the body.
    pub fn put(self, priority: i64, headers: &mut HeaderMap) -> Option<Splice> {
        match self {
            Self::Header => {
                headers.insert(PRIORITY_HEADER, HeaderValue::from(priority));
                None
            }
            Self::Body { at } => Some(Splice {
                range: at..at,
                insert: Bytes::from(format!("\"priority\":{priority},")),
            }),
        }
    }
}

/// Tools and system message of a request: their hash and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedBytes {
    /// Hash of the bytes, equal for equal prefixes.
    pub fingerprint: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Replace `range` of the body by `insert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splice {
    /// Byte range of the body that is replaced; often empty.
    pub range: Range<usize>,
    /// What goes there.
    pub insert: Bytes,
}

impl Splice {
    fn fixed(range: Range<usize>, insert: &'static str) -> Self {
        Self {
            range,
            insert: Bytes::from_static(insert.as_bytes()),
        }
    }
}

/// The body with both splices made, of which the first does not begin behind the second: no byte is copied.
pub fn spliced(body: &Bytes, edits: [Option<&Splice>; 2]) -> [Bytes; 5] {
    let mut slices = [const { Bytes::new() }; 5];
    let mut at = 0;
    for (pair, edit) in slices.chunks_exact_mut(2).zip(edits.iter().flatten()) {
        pair[0] = body.slice(at..edit.range.start);
        pair[1] = edit.insert.clone();
        at = edit.range.end;
    }
    slices[4] = body.slice(at..);
    slices
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
    tools: Option<Range<usize>>,
    system: Option<Range<usize>>,
    extra_body: Option<Range<usize>>,
    nvext: Option<Range<usize>>,
    is_last_step: Option<Range<usize>>,
    priority: Option<Range<usize>>,
    empty: bool,
    /// Members that an identity source starts from. Few, and none in most bodies.
    identity: Vec<Member<'a>>,
}

impl<'a> TopLevel<'a> {
    fn scan(body: &'a [u8], sources: &[Source]) -> Result<Self, ScanError> {
        let mut top = Self {
            empty: true,
            ..Self::default()
        };
        for member in Members::new(body) {
            let member = member?;
            top.empty = false;
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
                b"tools" => &mut top.tools,
                b"system" | b"instructions" => &mut top.system,
                b"extra_body" => &mut top.extra_body,
                b"nvext" => &mut top.nvext,
                b"is_last_step" => &mut top.is_last_step,
                b"priority" => &mut top.priority,
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
            priority: priority_place(api, headers, body, &top),
            messages: top.messages,
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

/// Where a priority goes. A first member: should the client have spelled its own key in a way that the scan does not
/// know, that one comes later, and counts.
fn priority_place(
    api: Api,
    headers: &HeaderMap,
    body: &[u8],
    top: &TopLevel<'_>,
) -> Option<PriorityPlace> {
    let own = top.priority.is_some() || headers.contains_key(PRIORITY_HEADER);
    // A body without members is an error that the backend has to see as it is.
    if own || top.empty {
        return None;
    }
    Some(match api {
        Api::Messages => PriorityPlace::Header,
        Api::Completions | Api::Responses => PriorityPlace::Body {
            at: Members::body_start(body),
        },
    })
}

/// Where to write `include_usage` into a stream request; `None` if the client asks for usage itself.
fn usage_splice(body: &[u8], options: Option<Range<usize>>) -> Option<Splice> {
    let Some(options) = options else {
        let at = Members::body_start(body);
        let insert = r#""stream_options":{"include_usage":true},"#;
        return Some(Splice::fixed(at..at, insert));
    };
    let text = &body[options.clone()];
    // Usage on every chunk follows from `include_usage`: a client that did not ask for that gets neither.
    let continuous = scan::find(text, b"continuous_usage_stats") == Some(b"true");
    let asked = scan::find(text, b"include_usage") == Some(b"true");
    if text.first() != Some(&b'{') || (continuous && !asked) {
        return Some(Splice::fixed(options, r#"{"include_usage":true}"#));
    }
    let mut empty = true;
    for member in Members::new(text).map_while(Result::ok) {
        empty = false;
        if member.key == b"include_usage" {
            let value = &text[member.value.clone()];
            let range = options.start + member.value.start..options.start + member.value.end;
            return (value != b"true").then(|| Splice::fixed(range, "true"));
        }
    }
    let at = options.start + 1;
    let insert = if empty {
        r#""include_usage":true"#
    } else {
        r#""include_usage":true,"#
    };
    Some(Splice::fixed(at..at, insert))
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

    /// The body as it is sent when usage is asked for.
    fn asking(body: &str) -> serde_json::Value {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        let sent = spliced(&bytes, [None, view(body).splice.as_ref()]);
        serde_json::from_slice(&sent.concat()).unwrap()
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
            let mut after = asking(body);
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
            asking(body)["stream_options"],
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
    fn a_priority_and_the_usage_are_spliced_into_one_body() {
        for (body, sent) in [
            (
                r#"{"stream":true}"#,
                r#"{"priority":-7,"stream_options":{"include_usage":true},"stream":true}"#,
            ),
            (
                r#" { "stream":true,"stream_options":{"include_usage":false}}"#,
                r#" {"priority":-7, "stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (r#"{"a": 1.0}"#, r#"{"priority":-7,"a": 1.0}"#),
        ] {
            let view = view(body);
            let mut headers = HeaderMap::new();
            let priority = view.priority.unwrap().put(-7, &mut headers);
            let bytes = Bytes::copy_from_slice(body.as_bytes());
            let slices = spliced(&bytes, [priority.as_ref(), view.splice.as_ref()]);
            assert_eq!(slices.concat(), sent.as_bytes());
            assert!(headers.is_empty());
        }
    }

    #[test]
    fn a_priority_goes_where_the_api_reads_it_unless_the_client_set_its_own() {
        let place = |api, headers: &HeaderMap, body: &str| {
            RequestView::parse(api, headers, body.as_bytes(), &Source::defaults())
                .unwrap()
                .priority
        };
        let mut headers = HeaderMap::new();
        let body = Some(PriorityPlace::Body { at: 1 });
        assert_eq!(place(Api::Completions, &headers, r#"{"a":1}"#), body);
        assert_eq!(place(Api::Responses, &headers, r#"{"a":1}"#), body);
        let header = place(Api::Messages, &headers, r#"{"a":1}"#).unwrap();
        assert_eq!(header.put(5, &mut headers), None);
        assert_eq!(headers[PRIORITY_HEADER], "5");
        for api in [Api::Completions, Api::Responses, Api::Messages] {
            let none = HeaderMap::new();
            assert_eq!(place(api, &headers, r#"{"a":1}"#), None);
            assert_eq!(place(api, &none, r#"{"a":1,"priority":0}"#), None);
            assert_eq!(place(api, &none, "{}"), None);
        }
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

//! Finds the members of a JSON object without building a tree.
//!
//! Agent bodies are long histories of which the gate needs half a dozen short fields. [`Members`] walks the
//! top level of an object once, skips values by their brackets and quotes, and yields byte ranges; nothing is
//! decoded, copied or allocated. What it checks is the structure: quotes, brackets, commas and colons of the
//! object it walks. The inside of skipped values (the spelling of a number, say) is left to the backend.

use std::borrow::Cow;
use std::ops::Range;

/// How deep values may nest; deeper input is refused.
pub const MAX_DEPTH: u32 = 128;

/// Why a body is not an object that can be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The body is valid so far, but not an object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// The structure is broken at this byte offset.
    #[error("invalid JSON at byte {0}")]
    Syntax(usize),
    /// The body ends inside a value.
    #[error("the JSON ends early, after {0} bytes")]
    Truncated(usize),
    /// More than [`MAX_DEPTH`] levels.
    #[error("the JSON nests deeper than 128 levels")]
    TooDeep,
}

/// One member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The key between its quotes, as written: a key spelled with escapes is not recognised.
    pub key: &'a [u8],
    /// Byte range of the value within the scanned text.
    pub value: Range<usize>,
}

/// An iterator over the members of one JSON object; ends after the first error.
#[derive(Debug)]
pub struct Members<'a> {
    text: &'a [u8],
    at: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    AfterMember,
    Done,
}

impl<'a> Members<'a> {
    /// Walks `text`, which must hold one object and nothing but white space around it.
    pub const fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            state: State::Start,
        }
    }

    /// Byte offset just behind the object's opening brace, for a splice; valid once a call to `next` was made.
    pub fn body_start(text: &[u8]) -> usize {
        skip_space(text, 0) + 1
    }

    fn advance(&mut self) -> Result<Option<Member<'a>>, ScanError> {
        self.at = skip_space(self.text, self.at);
        match self.state {
            State::Done => return Ok(None),
            State::Start => {
                if !self.open()? {
                    return Ok(None);
                }
            }
            State::AfterMember => match self.peek()? {
                b',' => self.at = skip_space(self.text, self.at + 1),
                b'}' => return self.close().map(|()| None),
                _ => return Err(ScanError::Syntax(self.at)),
            },
        }
        self.member().map(Some)
    }

    /// Steps over the opening brace; false for an empty object.
    fn open(&mut self) -> Result<bool, ScanError> {
        if self.peek()? != b'{' {
            let end = skip_value(self.text, self.at)?;
            return Err(match self.text.get(skip_space(self.text, end)) {
                None => ScanError::NotAnObject,
                Some(_) => ScanError::Syntax(end),
            });
        }
        self.at = skip_space(self.text, self.at + 1);
        if self.peek()? == b'}' {
            self.close()?;
            return Ok(false);
        }
        Ok(true)
    }

    fn close(&mut self) -> Result<(), ScanError> {
        self.state = State::Done;
        let end = skip_space(self.text, self.at + 1);
        if end < self.text.len() {
            Err(ScanError::Syntax(end))
        } else {
            Ok(())
        }
    }

    fn member(&mut self) -> Result<Member<'a>, ScanError> {
        if self.peek()? != b'"' {
            return Err(ScanError::Syntax(self.at));
        }
        let key_end = skip_string(self.text, self.at)?;
        let key = &self.text[self.at + 1..key_end - 1];
        self.at = skip_space(self.text, key_end);
        if self.peek()? != b':' {
            return Err(ScanError::Syntax(self.at));
        }
        let start = skip_space(self.text, self.at + 1);
        self.at = skip_value(self.text, start)?;
        self.state = State::AfterMember;
        Ok(Member {
            key,
            value: start..self.at,
        })
    }

    fn peek(&self) -> Result<u8, ScanError> {
        self.text
            .get(self.at)
            .copied()
            .ok_or(ScanError::Truncated(self.text.len()))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, ScanError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.advance().transpose();
        if matches!(item, Some(Err(_))) {
            self.state = State::Done;
            self.at = self.text.len();
        }
        item
    }
}

/// The value of the first member called `key`, if `text` is a well-formed object up to there.
pub fn find<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let member = Members::new(text)
        .map_while(Result::ok)
        .find(|member| member.key == key)?;
    Some(&text[member.value])
}

/// The first element of the array `text`; `None` for an empty array and for anything else.
pub fn first_element(text: &[u8]) -> Option<&[u8]> {
    let open = skip_space(text, 0);
    if text.get(open) != Some(&b'[') {
        return None;
    }
    let start = skip_space(text, open + 1);
    let end = skip_value(text, start).ok()?;
    Some(&text[start..end])
}

/// A name as text: a string unescaped, a number as written; `None` for null, booleans, the empty string, broken
/// UTF-8 and containers.
pub fn scalar(value: &[u8]) -> Option<Cow<'_, str>> {
    let text = match value.first()? {
        b'"' if memchr::memchr(b'\\', value).is_some() => {
            Cow::Owned(serde_json::from_slice(value).ok()?)
        }
        b'"' => Cow::Borrowed(std::str::from_utf8(&value[1..value.len() - 1]).ok()?),
        b'-' | b'0'..=b'9' => Cow::Borrowed(std::str::from_utf8(value).ok()?),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

pub(super) fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// From an opening quote to just behind the closing one.
pub(super) fn skip_string(text: &[u8], open: usize) -> Result<usize, ScanError> {
    let mut at = open + 1;
    loop {
        let Some(found) = text
            .get(at..)
            .and_then(|rest| memchr::memchr2(b'"', b'\\', rest))
        else {
            return Err(ScanError::Truncated(text.len()));
        };
        at += found;
        if text[at] == b'"' {
            return Ok(at + 1);
        }
        at += 2;
    }
}

/// From the first byte of a value to just behind its last.
pub(super) fn skip_value(text: &[u8], start: usize) -> Result<usize, ScanError> {
    match text.get(start) {
        None => Err(ScanError::Truncated(text.len())),
        Some(b'"') => skip_string(text, start),
        Some(b'{' | b'[') => skip_container(text, start),
        Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'N' | b'I') => Ok(skip_word(text, start)),
        Some(_) => Err(ScanError::Syntax(start)),
    }
}

fn skip_word(text: &[u8], start: usize) -> usize {
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    start + text[start..].iter().take_while(|b| is_word(b)).count()
}

fn skip_container(text: &[u8], start: usize) -> Result<usize, ScanError> {
    // One bit a level: 1 for an object, 0 for an array.
    let mut kinds: u128 = 0;
    let mut depth = 0;
    let mut at = start;
    loop {
        let byte = *text.get(at).ok_or(ScanError::Truncated(text.len()))?;
        match byte {
            b'"' => {
                at = skip_string(text, at)?;
                continue;
            }
            b'{' | b'[' => {
                if depth == MAX_DEPTH {
                    return Err(ScanError::TooDeep);
                }
                kinds = kinds << 1 | u128::from(byte == b'{');
                depth += 1;
            }
            b'}' | b']' => {
                if (kinds & 1 == 1) != (byte == b'}') {
                    return Err(ScanError::Syntax(at));
                }
                kinds >>= 1;
                depth -= 1;
                if depth == 0 {
                    return Ok(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<Vec<String>, ScanError> {
        let keys = Members::new(text.as_bytes())
            .map(|m| m.map(|m| String::from_utf8_lossy(m.key).into_owned()));
        keys.collect()
    }

    #[test]
    fn members_are_found_whatever_their_values_hold() {
        let text = r#" {"a": {"x":"}]\""} , "b":[1,{"c":2}],"d" : null ,"e":-1.5e3, "f":"\\" } "#;
        assert_eq!(keys(text).unwrap(), ["a", "b", "d", "e", "f"]);
        assert_eq!(find(text.as_bytes(), b"b").unwrap(), br#"[1,{"c":2}]"#);
        assert_eq!(
            find(text.as_bytes(), b"c"),
            None,
            "only the top level counts"
        );
        assert_eq!(keys("{}").unwrap(), [""; 0]);
    }

    #[test]
    fn broken_structure_is_named_by_its_offset() {
        assert_eq!(keys("[1,2]"), Err(ScanError::NotAnObject));
        assert_eq!(keys("\"text\""), Err(ScanError::NotAnObject));
        assert_eq!(keys("{\"a\":1"), Err(ScanError::Truncated(6)));
        assert_eq!(keys("{\"a\" 1}"), Err(ScanError::Syntax(5)));
        assert_eq!(keys("{\"a\":[}"), Err(ScanError::Syntax(6)));
        assert_eq!(keys("{\"a\":1} x"), Err(ScanError::Syntax(8)));
        assert_eq!(keys("{\"a\":1,}"), Err(ScanError::Syntax(7)));
        assert_eq!(keys(""), Err(ScanError::Truncated(0)));
        assert_eq!(keys("not json"), Err(ScanError::Syntax(3)));
        assert_eq!(
            keys(&format!("{{\"a\":{}", "[".repeat(200))),
            Err(ScanError::TooDeep)
        );
    }

    #[test]
    fn scalars_read_as_text_and_nothing_else_does() {
        assert_eq!(
            scalar(br#""tau2:retail:0""#).as_deref(),
            Some("tau2:retail:0")
        );
        assert_eq!(scalar(br#""a\u00e9\"b""#).as_deref(), Some("aé\"b"));
        assert_eq!(scalar(b"42").as_deref(), Some("42"));
        for nothing in [&b"null"[..], b"false", b"\"\"", b"{}", b"[]"] {
            assert_eq!(scalar(nothing), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_full_parser_on_what_the_members_are(value in json()) {
            let text = serde_json::to_vec(&value).unwrap();
            let members: Result<Vec<_>, _> = Members::new(&text).collect();
            match value.as_object() {
                None => proptest::prop_assert_eq!(members.unwrap_err(), ScanError::NotAnObject),
                Some(object) => {
                    let members = members.unwrap();
                    proptest::prop_assert_eq!(members.len(), object.len());
                    for member in members {
                        let key: String = serde_json::from_slice(&[b"\"", member.key, b"\""].concat()).unwrap();
                        let parsed: serde_json::Value = serde_json::from_slice(&text[member.value]).unwrap();
                        proptest::prop_assert_eq!(&parsed, &object[&key]);
                    }
                }
            }
        }

        #[test]
        fn never_panics(text in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Members::new(&text).count();
        }
    }

    fn json() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".{0,12}".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..5)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }
}

//! Which tool a response calls, where the API's own fields do not say it: calls written into the answer's text, and
//! the expert that `call_expert` names.
//!
//! Three notations, in this order: Hermes blocks (`<tool_call>` with JSON inside), a whole answer that is one
//! `{"name", "parameters"}` object (Llama), and a fenced `bash` block, whose first word is the tool. The text comes
//! in pieces of any size; kept are a state, one walk over JSON and a few short names. Several choices of one
//! response are read as one text.

use memchr::memmem::Finder;

use super::MULTI_TOOL;
use super::json::{Event, Key, Walker};

/// The tool whose argument says which model is asked: each one has its own duration.
const EXPERT: &str = "call_expert";
const OPEN: &[u8] = b"<tool_call>";
const CLOSE: &[u8] = b"</tool_call>";
const FENCE: &[u8] = b"```bash";
/// Bytes kept of a word after a fence.
const WORD_LIMIT: usize = 128;

/// What the text's last byte was part of. Numbers are bytes matched of a mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    #[default]
    Start,
    /// Prose.
    Prose { open: usize, fence: usize },
    /// In a Hermes block.
    Block { close: usize },
    /// In an answer that begins as a JSON object.
    Json,
    /// After that object.
    AfterJson,
    /// After a fence, in the white space before its first word, or in the word.
    Fence,
}

const PROSE: State = State::Prose { open: 0, fence: 0 };

/// An escape that is not complete.
#[derive(Clone, Copy, Debug, Default)]
struct Hex {
    left: u8,
    code: u32,
}

/// One JSON object that may be a call.
#[derive(Clone, Debug)]
struct Object {
    walker: Walker,
    name: Option<String>,
    expert: Option<String>,
    has_parameters: bool,
    closed: bool,
}

impl Object {
    const fn new() -> Self {
        Self {
            walker: Walker::new(),
            name: None,
            expert: None,
            has_parameters: false,
            closed: false,
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let Self {
            walker,
            name,
            expert,
            has_parameters,
            closed,
        } = self;
        walker.feed(bytes, &mut |path, event| match (path, event) {
            ([Key::Name], Event::String(text)) => *name = Some(super::facts::unescaped(text)),
            ([Key::Parameters], _) => *has_parameters = true,
            (
                [Key::Arguments | Key::Parameters, Key::Expert] | [Key::Expert],
                Event::String(text),
            ) => {
                *expert = Some(super::facts::unescaped(text));
            }
            // Arguments may be JSON in a string.
            ([Key::Arguments], Event::String(text)) => {
                let mut inner = Self::new();
                inner.read(super::facts::unescaped(text).as_bytes());
                *expert = inner.expert;
            }
            ([], Event::Close) => *closed = true,
            _ => {}
        });
    }

    /// The tool that the object calls: the expert's name in place of `call_expert`.
    fn tool(self) -> Option<String> {
        let name = self.name?;
        if name == EXPERT {
            return self.expert.or(Some(name));
        }
        Some(name)
    }
}

/// Reads calls out of an answer's text and out of a call's arguments.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    state: State,
    hex: Hex,
    /// The object being read in the text.
    object: Option<Box<Object>>,
    /// The arguments of an API call.
    arguments: Option<Box<Object>>,
    /// Tools of the notations found so far: Hermes, Llama, bash.
    hermes: Option<String>,
    llama: Option<String>,
    word: String,
    fences: u32,
    /// The API's own fields named a call: the text is not asked.
    told: bool,
    wants_expert: bool,
}

impl Calls {
    /// Whether a frame after the first content has to be read, though it holds no fact.
    pub(super) fn needs(&self, frame: &[u8]) -> bool {
        match self.state {
            _ if self.told => self.wants_expert,
            State::Start => is_answer(frame),
            PROSE => memchr::memchr2(b'<', b'`', frame).is_some(),
            State::Prose { .. }
            | State::Block { .. }
            | State::Json
            | State::AfterJson
            | State::Fence => true,
        }
    }

    /// The API's own fields named a call of `tool`. Returns the name to tell instead, if that is known already.
    pub(super) fn told(&mut self, tool: &str) -> Option<String> {
        self.told = true;
        self.wants_expert = tool == EXPERT;
        if !self.wants_expert {
            return None;
        }
        self.take_expert()
    }

    /// Reads a piece of the arguments of an API call, escapes taken care of by the caller. Returns the expert that
    /// they name, if that is what the call's tool is known by.
    pub(super) fn arguments(&mut self, bytes: &[u8]) -> Option<String> {
        let object = self
            .arguments
            .get_or_insert_with(|| Box::new(Object::new()));
        object.read(bytes);
        if self.wants_expert {
            return self.take_expert();
        }
        None
    }

    /// Another JSON text of the same response begins. Arguments whose call was not named yet are not waited for.
    pub(super) fn next_text(&mut self) {
        if !self.wants_expert {
            self.arguments = None;
        }
    }

    fn take_expert(&mut self) -> Option<String> {
        let expert = self.arguments.as_mut()?.expert.take()?;
        self.wants_expert = false;
        Some(expert)
    }

    /// The byte after a backslash in the text or the arguments, as what it stands for; `None` for the start of a
    /// `\u` escape.
    pub(super) const fn unescape(&mut self, byte: u8) -> Option<u8> {
        match byte {
            b'n' => Some(b'\n'),
            b't' => Some(b'\t'),
            b'r' => Some(b'\r'),
            b'b' | b'f' => Some(b' '),
            b'u' => {
                self.hex = Hex { left: 4, code: 0 };
                None
            }
            other => Some(other),
        }
    }

    /// Takes the digits of a `\u` escape off the front of a piece; returns the rest, and the character if it is
    /// complete. Halves of a pair are replaced.
    pub(super) fn hex<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], Option<char>) {
        let mut rest = bytes;
        while self.hex.left > 0
            && let Some((first, after)) = rest.split_first()
        {
            let digit = char::from(*first).to_digit(16).unwrap_or(0);
            self.hex.code = self.hex.code * 16 + digit;
            self.hex.left -= 1;
            rest = after;
            if self.hex.left == 0 {
                let char = char::from_u32(self.hex.code);
                return (rest, char.or(Some(char::REPLACEMENT_CHARACTER)));
            }
        }
        (rest, None)
    }

    /// Reads a piece of the answer's text. Returns whether [`Self::tool`] may have changed.
    pub(super) fn text(&mut self, bytes: &[u8]) -> bool {
        if self.told {
            return false;
        }
        let mut changed = false;
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            let mut used = 1;
            match self.state {
                State::Start => changed |= self.start(byte),
                PROSE => {
                    // To the next byte that may begin a mark.
                    let next = memchr::memchr2(b'<', b'`', rest);
                    used = next.unwrap_or(rest.len());
                    if used == 0 {
                        used = 1;
                        changed |= self.prose(0, 0, byte);
                    }
                }
                State::Prose { open, fence } => changed |= self.prose(open, fence, byte),
                State::Block { close } => changed |= self.block(close, byte),
                State::Json => changed |= self.json(byte),
                State::AfterJson => changed |= self.after_json(byte),
                State::Fence => changed |= self.fence(byte),
            }
            rest = &rest[used..];
        }
        changed
    }

    /// The tool that the text calls, [`MULTI_TOOL`] for several, `None` for prose.
    pub(super) fn tool(&self) -> Option<String> {
        let named = self.hermes.as_ref().or(self.llama.as_ref());
        let bash = || (self.fences == 1 && !self.word.is_empty()).then(|| self.word.clone());
        named.cloned().or_else(bash)
    }

    fn start(&mut self, byte: u8) -> bool {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => false,
            b'{' => {
                self.object = Some(Box::new(Object::new()));
                self.state = State::Json;
                self.json(byte)
            }
            _ => self.prose(0, 0, byte),
        }
    }

    fn prose(&mut self, open: usize, fence: usize, byte: u8) -> bool {
        let open = matched(OPEN, open, byte);
        let fence = matched(FENCE, fence, byte);
        if open == OPEN.len() {
            self.object = Some(Box::new(Object::new()));
            self.state = State::Block { close: 0 };
        } else if fence == FENCE.len() {
            self.fences = self.fences.saturating_add(1);
            self.word.clear();
            self.state = State::Fence;
            // A second fence takes the first one's word back.
            return self.fences > 1;
        } else {
            self.state = State::Prose { open, fence };
        }
        false
    }

    /// A block ends with its JSON object, or without one at its closing mark.
    fn block(&mut self, close: usize, byte: u8) -> bool {
        let close = matched(CLOSE, close, byte);
        self.state = State::Block { close };
        let Some(object) = &mut self.object else {
            return false;
        };
        object.read(&[byte]);
        let closed = object.closed;
        if closed || close == CLOSE.len() {
            self.state = PROSE;
        }
        let Some(tool) = self.object.take_if(|_| closed).and_then(|o| o.tool()) else {
            return false;
        };
        self.hermes = Some(match self.hermes {
            None => tool,
            Some(_) => MULTI_TOOL.to_owned(),
        });
        true
    }

    fn json(&mut self, byte: u8) -> bool {
        let Some(object) = &mut self.object else {
            return false;
        };
        object.read(&[byte]);
        if !object.closed {
            return false;
        }
        self.state = State::AfterJson;
        let call = self.object.take().filter(|object| object.has_parameters);
        self.llama = call.and_then(|object| object.tool());
        self.llama.is_some()
    }

    /// Text after the object: then the answer is no call.
    fn after_json(&mut self, byte: u8) -> bool {
        if byte.is_ascii_whitespace() {
            return false;
        }
        self.prose(0, 0, byte) | self.llama.take().is_some()
    }

    /// The first word of the fenced command.
    fn fence(&mut self, byte: u8) -> bool {
        if self.word.is_empty() && byte.is_ascii_whitespace() {
            return false;
        }
        if byte.is_ascii_whitespace() || byte == b'`' {
            self.state = PROSE;
            self.prose(0, 0, byte);
            return true;
        }
        if byte.is_ascii() && self.word.len() < WORD_LIMIT {
            self.word.push(char::from(byte));
        }
        false
    }
}

/// How much of `mark` the text ends with, after `byte`, if it ended with `before` bytes of it.
fn matched(mark: &[u8], before: usize, byte: u8) -> usize {
    let fits = |len: usize| mark.get(len) == Some(&byte) && mark[..before].ends_with(&mark[..len]);
    (0..=before)
        .rev()
        .find(|len| fits(*len))
        .map_or(0, |len| len + 1)
}

/// Whether the frame holds text of the answer.
fn is_answer(frame: &[u8]) -> bool {
    static KEYS: std::sync::LazyLock<[Finder<'static>; 2]> =
        std::sync::LazyLock::new(|| [r#""content""#, r#""text""#].map(Finder::new));
    KEYS.iter().any(|key| key.find(frame).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(text: &str) -> Option<String> {
        let mut calls = Calls::default();
        calls.text(text.as_bytes());
        let mut bytewise = Calls::default();
        for byte in text.as_bytes() {
            bytewise.text(&[*byte]);
        }
        assert_eq!(calls.tool(), bytewise.tool(), "{text}");
        calls.tool()
    }

    #[test]
    fn a_hermes_block_names_its_tool_and_two_are_multi_tool() {
        let one = r#"Let me look.<tool_call>
{"name": "get_order", "arguments": {"id": "<tool_call>"}}
</tool_call>"#;
        assert_eq!(tool(one).as_deref(), Some("get_order"));
        assert_eq!(tool(&format!("{one}\n{one}")).as_deref(), Some(MULTI_TOOL));
        let open_end = one.trim_end_matches("</tool_call>");
        assert_eq!(tool(open_end).as_deref(), Some("get_order"));
        assert_eq!(tool("<tool_call>no JSON</tool_call> <tool_call"), None);
    }

    #[test]
    fn an_expert_is_known_by_its_own_name() {
        for arguments in [
            r#"{"expert": "expert-2"}"#,
            r#""{\"expert\": \"expert-2\"}""#,
        ] {
            let text = format!(
                r#"<tool_call>{{"name": "call_expert", "arguments": {arguments}}}</tool_call>"#
            );
            assert_eq!(tool(&text).as_deref(), Some("expert-2"), "{text}");
        }
        let unnamed = r#"<tool_call>{"name": "call_expert", "arguments": {}}</tool_call>"#;
        assert_eq!(tool(unnamed).as_deref(), Some("call_expert"));
    }

    #[test]
    fn an_answer_that_is_one_object_with_parameters_is_a_call() {
        let call = " \n{\"name\": \"ls\", \"parameters\": {\"path\": \".\"}}\n";
        assert_eq!(tool(call).as_deref(), Some("ls"));
        assert_eq!(tool(&format!("{call} done")), None, "text after it");
        assert_eq!(tool(&format!("Sure: {call}")), None, "text before it");
        assert_eq!(tool(r#"{"name": "Ann", "age": 9}"#), None);
        let nested = r#"{"answer": {"name": "ls", "parameters": {}}}"#;
        assert_eq!(tool(nested), None);
    }

    #[test]
    fn a_single_bash_fence_is_known_by_its_first_word() {
        let fence = "THOUGHT: look\n\n```bash\ngrep -rn 'a' . && ls\n```";
        assert_eq!(tool(fence).as_deref(), Some("grep"));
        assert_eq!(tool(&format!("{fence} and {fence}")), None);
        assert_eq!(tool("````bash\nls\n````").as_deref(), Some("ls"));
        assert_eq!(tool("```python\nls\n```"), None);
    }

    #[test]
    fn a_block_goes_before_a_fence() {
        let text = "```bash\nls\n```\n<tool_call>{\"name\":\"find\"}</tool_call>";
        assert_eq!(tool(text).as_deref(), Some("find"));
    }

    #[test]
    fn prose_and_markup_are_no_call() {
        for text in ["", "plain", "a < b and `code` and <tool_cal", "1 {\"name\""] {
            assert_eq!(tool(text), None, "{text}");
        }
    }

    #[test]
    fn only_text_that_may_hold_a_call_needs_to_be_read() {
        let mut calls = Calls::default();
        assert!(!calls.needs(br#"{"delta":{"reasoning_content":"x"}}"#));
        assert!(calls.needs(br#"{"delta":{"content":"x"}}"#));
        calls.text(b"prose");
        assert!(!calls.needs(br#"{"delta":{"content":" more prose"}}"#));
        assert!(calls.needs(br#"{"delta":{"content":" a <"}}"#));
        calls.text(b" a <");
        assert!(calls.needs(br#"{"delta":{"content":"tool"}}"#));
        calls.text(b"b");
        assert!(!calls.needs(br#"{"delta":{"content":"tool"}}"#));
        calls.told("ls");
        assert!(!calls.needs(br#"{"delta":{"content":"<"}}"#));
    }
}

//! What a server answers, whole or streamed, reduced to what goes into the history and the records.

use serde::{Deserialize, Serialize};

/// Longest line of a stream that is kept; a longer one ends the step with an error.
const MAX_LINE_BYTES: usize = 1 << 20;

/// A served step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The text, if there was one.
    pub content: Option<String>,
    /// The tools called.
    pub tool_calls: Vec<ToolCall>,
    /// Token counts, where the server sent them.
    pub usage: Option<Usage>,
}

/// A tool call, in the shape it has in a reply and in the history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call, for the tool's message to refer to.
    #[serde(default)]
    pub id: String,
    #[serde(rename = "type", default = "function_type")]
    kind: String,
    /// What is called.
    #[serde(default)]
    pub function: Function,
}

/// The function of a tool call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its arguments, JSON in a string.
    #[serde(default)]
    pub arguments: String,
}

fn function_type() -> String {
    "function".to_owned()
}

impl ToolCall {
    /// A call of the function `name`.
    pub fn new(id: &str, name: &str, arguments: &str) -> Self {
        Self {
            id: id.to_owned(),
            kind: function_type(),
            function: Function {
                name: name.to_owned(),
                arguments: arguments.to_owned(),
            },
        }
    }
}

/// Token counts of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Prompt length, in tokens.
    pub prompt: u64,
    /// Reply length, in tokens.
    pub output: u64,
    /// Part of the prompt served from the prefix cache, in tokens, where the server says.
    pub cached: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct RawUsage {
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl From<RawUsage> for Usage {
    fn from(raw: RawUsage) -> Self {
        Self {
            prompt: raw.prompt_tokens,
            output: raw.completion_tokens,
            cached: raw.prompt_tokens_details.and_then(|d| d.cached_tokens),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Whole {
    choices: Vec<WholeChoice>,
    usage: Option<RawUsage>,
}

#[derive(Debug, Deserialize)]
struct WholeChoice {
    message: Message,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

#[derive(Debug, Deserialize)]
struct Frame {
    #[serde(default)]
    choices: Vec<FrameChoice>,
    usage: Option<RawUsage>,
    error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct FrameChoice {
    delta: Option<Delta>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Deserialize)]
struct CallDelta {
    #[serde(default)]
    index: usize,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Debug, Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

/// Reads a reply that came in one piece.
///
/// # Errors
/// In words, when it is no chat completion.
pub fn parse_whole(bytes: &[u8]) -> Result<Reply, String> {
    let whole: Whole =
        serde_json::from_slice(bytes).map_err(|e| format!("no chat completion: {e}"))?;
    let choice = whole
        .choices
        .into_iter()
        .next()
        .ok_or("a reply without choices")?;
    Ok(Reply {
        content: choice.message.content,
        tool_calls: choice.message.tool_calls.unwrap_or_default(),
        usage: whole.usage.map(Usage::from),
    })
}

/// Puts a streamed reply together, fed with bytes cut anywhere.
#[derive(Debug, Default)]
pub struct Assembler {
    reply: Reply,
    /// The line that has not ended yet.
    line: Vec<u8>,
    done: bool,
    has_content: bool,
}

impl Assembler {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// In words, when a frame is malformed or reports an error.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.line.is_empty() {
                self.take_line(line)?;
            } else {
                self.line.extend_from_slice(line);
                let whole = std::mem::take(&mut self.line);
                self.take_line(&whole)?;
            }
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > MAX_LINE_BYTES {
            return Err(format!(
                "a line of the stream is over {MAX_LINE_BYTES} bytes"
            ));
        }
        Ok(())
    }

    /// Whether a frame with text or a tool call has come.
    pub const fn has_content(&self) -> bool {
        self.has_content
    }

    /// The whole reply.
    ///
    /// # Errors
    /// In words, when the stream broke off before `[DONE]`.
    pub fn finish(self) -> Result<Reply, String> {
        if self.done {
            Ok(self.reply)
        } else {
            Err("the stream broke off before [DONE]".to_owned())
        }
    }

    fn take_line(&mut self, line: &[u8]) -> Result<(), String> {
        let Some(data) = line.strip_prefix(b"data:") else {
            return Ok(());
        };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let frame: Frame =
            serde_json::from_slice(data).map_err(|e| format!("a malformed frame: {e}"))?;
        if let Some(error) = frame.error {
            return Err(format!("an error in the stream: {error}"));
        }
        if let Some(usage) = frame.usage {
            self.reply.usage = Some(usage.into());
        }
        for delta in frame.choices.into_iter().filter_map(|choice| choice.delta) {
            self.take_delta(delta);
        }
        Ok(())
    }

    fn take_delta(&mut self, delta: Delta) {
        if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
            self.has_content = true;
            self.reply.content.get_or_insert_default().push_str(&text);
        }
        for call in delta.tool_calls.unwrap_or_default() {
            self.has_content = true;
            // A server that skips numbers cannot make the list long.
            if call.index >= self.reply.tool_calls.len() {
                self.reply.tool_calls.push(ToolCall::new("", "", ""));
            }
            let Some(known) = self.reply.tool_calls.last_mut() else {
                continue;
            };
            known.id.push_str(&call.id.unwrap_or_default());
            if let Some(function) = call.function {
                known
                    .function
                    .name
                    .push_str(&function.name.unwrap_or_default());
                known
                    .function
                    .arguments
                    .push_str(&function.arguments.unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        ": comment\r\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"hé\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"llo\"}}]}\r\n\r\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,",
        "\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
        "data: [DONE]\n\n"
    );

    fn assemble(chunks: &[&[u8]]) -> Result<Reply, String> {
        let mut assembler = Assembler::default();
        for chunk in chunks {
            assembler.feed(chunk)?;
        }
        assembler.finish()
    }

    #[test]
    fn any_cut_of_the_bytes_gives_the_same_reply() {
        let bytes = STREAM.as_bytes();
        let whole = assemble(&[bytes]).unwrap();
        assert_eq!(whole.content.as_deref(), Some("héllo"));
        let usage = whole.usage.unwrap();
        assert_eq!((usage.prompt, usage.cached), (7, Some(4)));
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(assemble(&[a, b]).unwrap(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_tool_call_is_put_together_from_its_pieces() {
        let stream = concat!(
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c1\",",
            "\"function\":{\"name\":\"ls\",\"arguments\":\"\"}}]}}]}\n",
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,",
            "\"function\":{\"arguments\":\"{}\"}}]}}]}\n",
            "data: [DONE]\n"
        );
        let reply = assemble(&[stream.as_bytes()]).unwrap();
        assert_eq!(reply.tool_calls, [ToolCall::new("c1", "ls", "{}")]);
        assert_eq!(reply.content, None);
    }

    #[test]
    fn a_stream_that_breaks_off_or_reports_an_error_is_no_reply() {
        let (cut, _) = STREAM.split_once("data: [DONE]").unwrap();
        assert!(assemble(&[cut.as_bytes()]).unwrap_err().contains("[DONE]"));
        let error = "data: {\"error\":{\"message\":\"out of memory\"}}\n\n";
        assert!(
            assemble(&[error.as_bytes()])
                .unwrap_err()
                .contains("out of memory")
        );
    }

    #[test]
    fn a_whole_reply_gives_text_calls_and_counts() {
        let body = br#"{"choices":[{"message":{"role":"assistant","content":null,"tool_calls":
            [{"id":"c","type":"function","function":{"name":"ls","arguments":"{}"}}]}}],
            "usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}"#;
        let reply = parse_whole(body).unwrap();
        assert_eq!(reply.tool_calls, [ToolCall::new("c", "ls", "{}")]);
        assert_eq!(reply.usage.map(|u| u.output), Some(2));
        assert!(parse_whole(b"{\"choices\":[]}").is_err());
    }
}

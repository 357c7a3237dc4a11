//! What a real vLLM 0.32.0 answered, as recorded in `tests/fixtures/vllm`.

use std::path::PathBuf;

/// One recorded response.
#[derive(Clone, Debug)]
pub(crate) struct Fixture {
    pub(crate) status: u16,
    /// In the order of the wire, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// The response recorded under `name`.
pub(crate) fn fixture(name: &str) -> Fixture {
    let text = read(&format!("{name}.response.txt"));
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    };
    Fixture {
        status: status.parse().unwrap(),
        headers: lines.map(header).collect(),
        body: body.as_bytes().to_vec(),
    }
}

/// The path and the body of the request recorded under `name`.
pub(crate) fn request(name: &str) -> (String, Vec<u8>) {
    let text = read(&format!("{name}.request.txt"));
    let (line, body) = text.split_once('\n').unwrap();
    let path = line.split(' ').nth(1).unwrap();
    (path.to_owned(), body.trim().as_bytes().to_vec())
}

/// A file of the fixtures' folder.
pub(crate) fn read(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vllm");
    let path = folder.join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Fixture {
    /// The SSE frames of the body, each with its blank line.
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        let text = String::from_utf8(self.body.clone()).unwrap();
        let frames = text.split_inclusive("\n\n");
        frames.map(|frame| frame.as_bytes().to_vec()).collect()
    }

    /// The frames of a stream that asked for usage, as vLLM sends them when nobody asks: without the frame of the
    /// usage, whose fingerprint then stands in the frame that ends the turn.
    pub(crate) fn frames_without_usage(&self) -> Vec<Vec<u8>> {
        const STAMP: &str = ",\"system_fingerprint\":\"vllm-0.32.0-c606691a\"";
        let mut frames = self.frames();
        let usage = frames.remove(frames.len() - 2);
        let usage = String::from_utf8(usage).unwrap();
        assert!(
            usage.contains("\"choices\":[]") && usage.contains(STAMP),
            "{usage}"
        );
        let ending = frames.len() - 2;
        let text = String::from_utf8(frames[ending].clone()).unwrap();
        let open = text.strip_suffix("}\n\n").unwrap();
        frames[ending] = format!("{open}{STAMP}}}\n\n").into_bytes();
        frames
    }
}

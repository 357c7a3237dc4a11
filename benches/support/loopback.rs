//! A stub backend and a client that cost next to nothing: blocking threads, one buffer each, no allocation per
//! request. What is measured with them is the gate.
#![expect(
    clippy::expect_used,
    reason = "a measurement without its stub is no measurement"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// A chat completion of 400 bytes with usage, as vLLM words it.
const REPLY: &str = concat!(
    r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"#,
    r#""message":{"role":"assistant","content":"The order was placed on Monday and ships tomorrow."},"#,
    r#""finish_reason":"stop"}],"usage":{"prompt_tokens":1361,"total_tokens":1375,"completion_tokens":14,"#,
    r#""prompt_tokens_details":{"cached_tokens":1344}}}"#
);

/// Starts a stub that answers every request with the same completion (and `/metrics` with 404). Its threads end
/// with the process.
pub(crate) fn stub() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("a bound address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    addr
}

fn answer(mut stream: TcpStream) {
    let head = format!(
        "HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 03:21:41 GMT\r\nserver: uvicorn\r\ncontent-length: {}\r\ncontent-type: application/json\r\n\r\n",
        REPLY.len()
    );
    let reply = [head.as_bytes(), REPLY.as_bytes()].concat();
    let missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    let mut buffer = vec![0; 1 << 20];
    stream.set_nodelay(true).expect("a live socket");
    while let Some(request) = read_message(&mut stream, &mut buffer) {
        let is_scrape = buffer[..request].starts_with(b"GET");
        let answer: &[u8] = if is_scrape { missing } else { &reply };
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

/// A client with one connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    /// A client of `addr` that sends `body` as a chat completion request.
    pub(crate) fn connect(addr: SocketAddr, body: &str) -> Self {
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {addr}\r\naccept: application/json\r\ncontent-type: application/json\r\nuser-agent: OpenAI/Python 2.54.0\r\nauthorization: Bearer EMPTY\r\nx-stainless-retry-count: 0\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let stream = TcpStream::connect(addr).expect("a listening server");
        stream.set_nodelay(true).expect("a live socket");
        Self {
            stream,
            request: [head.as_bytes(), body.as_bytes()].concat(),
            buffer: vec![0; 1 << 16],
        }
    }

    /// One request and its response; returns the response's length in bytes.
    pub(crate) fn call(&mut self) -> usize {
        self.stream.write_all(&self.request).expect("a live socket");
        let length = read_message(&mut self.stream, &mut self.buffer).expect("a whole response");
        assert!(
            self.buffer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&self.buffer[..length])
        );
        length
    }
}

/// Reads one message with a `content-length` (or none) and returns its length; `None` when the peer has left.
fn read_message(stream: &mut TcpStream, buffer: &mut [u8]) -> Option<usize> {
    let mut filled = 0;
    let mut whole = None;
    loop {
        let count = stream
            .read(&mut buffer[filled..])
            .ok()
            .filter(|&count| count > 0)?;
        filled += count;
        if whole.is_none() {
            whole = message_length(&buffer[..filled]);
        }
        if whole.is_some_and(|whole| filled >= whole) {
            return whole;
        }
    }
}

fn message_length(bytes: &[u8]) -> Option<usize> {
    let head = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let key = b"content-length: ";
    let Some(at) = memchr::memmem::find(&bytes[..head], key) else {
        return Some(head);
    };
    let digits = bytes[at + key.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    Some(head + digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0')))
}

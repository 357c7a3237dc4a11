//! Request bodies as agents send them.

use std::fmt::Write as _;

/// A chat request of about `bytes` bytes, shaped as an agent's: system message, tools, a long history, and the
/// program's id last, where a scan finds it latest.
pub(crate) fn chat_body(bytes: usize) -> String {
    let mut history = String::new();
    let mut turn = 0;
    while history.len() + 500 < bytes {
        let text = "word and \\\"quoted\\\" text, ".repeat(16);
        let _infallible = write!(history, r#",{{"role":"user","content":"{turn} {text}"}}"#);
        turn += 1;
    }
    let tools =
        r#"[{"type":"function","function":{"name":"get_order","parameters":{"type":"object"}}}]"#;
    let system = r#"{"role":"system","content":"You are a careful agent."}"#;
    format!(
        r#"{{"messages":[{system}{history}],"model":"m","max_tokens":8000,"temperature":1,"tools":{tools},"job_id":"tau2:retail:0:46fbbefc","is_last_step":false}}"#
    )
}

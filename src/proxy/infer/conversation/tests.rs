//! One meaning, many spellings: what must digest the same and what must not.

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read(messages: &str) -> Option<Conversation> {
    Conversation::read("m", messages.as_bytes())
}

/// The conversation of one message.
fn one(message: &str) -> Conversation {
    read(&format!("[{message}]")).unwrap()
}

#[test]
fn spelling_does_not_count() {
    let plain = one(
        r#"{"role":"assistant","content":"","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1,\"b\":[2.5,\"é\"]}"}}]}"#,
    );
    for same in [
        // White space and the order of keys, also inside the arguments.
        r#" { "tool_calls" : [ { "function" : { "arguments" : "{ \"b\": [2.5, \"é\"], \"a\": 1 }" , "name" : "f" } , "id" : "c1" } ] , "content" : "" , "role" : "assistant" } "#,
        // Escapes, once and twice over; another spelling of a number.
        r#"{"role":"\u0061ssistant","content":"","tool_calls":[{"id":"c\u0031","function":{"name":"f","arguments":"{\"\\u0061\":1.0,\"b\":[25e-1,\"\u00e9\"]}"}}]}"#,
        // Arguments as an object; a content that is null; a type and a name that nobody looks at.
        r#"{"role":"assistant","content":null,"name":"x","tool_calls":[{"id":"c1","name":"f","function":{"name":"f","arguments":{"a":1,"b":[2.5,"é"]}}}]}"#,
    ] {
        assert_eq!(one(same), plain, "{same}");
    }
}

#[test]
fn meaning_counts() {
    let plain = one(
        r#"{"role":"assistant","content":"x","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{\"a\":1}"}}]}"#,
    );
    for other in [
        r#"{"role":"user","content":"x","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{\"a\":1}"}}]}"#,
        r#"{"role":"assistant","content":"x ","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{\"a\":1}"}}]}"#,
        r#"{"role":"assistant","content":"x","tool_calls":[{"id":"d","function":{"name":"f","arguments":"{\"a\":1}"}}]}"#,
        r#"{"role":"assistant","content":"x","tool_calls":[{"id":"c","function":{"name":"g","arguments":"{\"a\":1}"}}]}"#,
        r#"{"role":"assistant","content":"x","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{\"a\":\"1\"}"}}]}"#,
        r#"{"role":"assistant","content":"x","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{\"a\":1"}}]}"#,
        r#"{"role":"assistant","content":"x","tool_call_id":"c"}"#,
    ] {
        assert_ne!(one(other).whole(), plain.whole(), "{other}");
    }
    let order = |text: &str| read(text).unwrap().whole();
    assert_ne!(
        order(r#"[{"role":"user"},{"role":"tool"}]"#),
        order(r#"[{"role":"tool"},{"role":"user"}]"#)
    );
}

#[test]
fn a_text_in_a_list_of_one_part_is_that_text() {
    let text = one(r#"{"role":"user","content":"a\n\"b\""}"#);
    let part = r#"{"role":"user","content":[{"type":"text","cache_control":{"type":"ephemeral"},"text":"a\n\"b\""}]}"#;
    assert_eq!(one(part), text);
    let image = |url: &str| {
        one(&format!(
            r#"{{"role":"user","content":[{{"text":"a","type":"text"}},{{"type":"image_url","image_url":{{"url":"{url}"}}}}]}}"#
        ))
    };
    assert_ne!(image("x"), image("y"));
    let split = |a: &str, b: &str| {
        one(&format!(
            r#"{{"role":"user","content":[{{"text":"{a}"}},{{"text":"{b}"}}]}}"#
        ))
    };
    assert_ne!(split("ab", "c"), split("a", "bc"));
}

#[test]
fn every_prefix_has_a_digest_and_a_longer_request_shares_those_of_a_shorter() {
    let short = read(r#"[{"role":"system","content":"s"},{"role":"user","content":"u"}]"#).unwrap();
    let long = read(r#"[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"}]"#).unwrap();
    assert_eq!(short.links, long.links[..2]);
    assert_eq!((short.heard, long.heard), (Some(xxh3_64(b"u")), None));
    assert_eq!(long.links[2].answer, Some(xxh3_64(b"a")));
}

#[test]
fn what_is_no_list_of_messages_is_no_conversation() {
    let deep = format!(r#"[{{"role":"user","content":[{}]}}]"#, "[".repeat(300));
    let many = |count: usize| format!("[{}{{}}]", "{},".repeat(count - 1));
    assert!(read(&many(MAX_MESSAGES)).is_some());
    let many = many(MAX_MESSAGES + 1);
    for text in [
        "",
        "[]",
        "{}",
        "\"x\"",
        "[1]",
        "[{}",
        r#"[{"role":"#,
        "[{},]",
        &deep,
        &many,
    ] {
        assert_eq!(
            read(text),
            None,
            "{}",
            text.chars().take(40).collect::<String>()
        );
    }
}

/// Writes a value as a client of other habits would: keys reversed, white space, letters escaped that `mask`
/// picks, though not in a key of nothing but ASCII, which no serialiser escapes.
fn respell(value: &Value, mask: u64, out: &mut String) {
    match value {
        Value::Object(object) => {
            let mut first = "{ ";
            for (key, value) in object.iter().rev() {
                *out += std::mem::replace(&mut first, " ,\n");
                let is_ascii = key.is_ascii();
                respell(
                    &Value::from(key.clone()),
                    if is_ascii { 0 } else { mask },
                    out,
                );
                *out += " :\t";
                respell(value, mask, out);
            }
            *out += if object.is_empty() { "{ }" } else { "\r\n}" };
        }
        Value::Array(items) => {
            let mut first = "[ ";
            for item in items {
                *out += std::mem::replace(&mut first, " , ");
                respell(item, mask, out);
            }
            *out += if items.is_empty() { "[ ]" } else { "]" };
        }
        Value::String(text) => {
            out.push('"');
            for (i, unit) in text.encode_utf16().enumerate() {
                match char::from_u32(u32::from(unit)) {
                    Some(c)
                        if mask >> (i % 64) & 1 == 0 && c >= ' ' && !matches!(c, '"' | '\\') =>
                    {
                        out.push(c);
                    }
                    _ => write!(out, "\\u{unit:04X}").unwrap(),
                }
            }
            out.push('"');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => *out += &value.to_string(),
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-dé\"]{0,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_message_written_anew_digests_the_same(text in ".{0,20}", id in ".{0,6}", arguments in value(), part in value(), mask in any::<u64>()) {
        let mut other = String::new();
        respell(&arguments, mask, &mut other);
        let messages = |arguments: String| json!([
            {"role": "assistant", "content": text, "tool_calls": [{"id": id, "function": {"name": "f", "arguments": arguments}}]},
            {"role": "user", "content": [{"type": "text", "text": text}, {"type": "x", "x": part}]},
        ]);
        let (plain, anew) = (messages(arguments.to_string()), messages(other));
        let mut written = String::new();
        respell(&anew, mask, &mut written);
        let plain = read(&plain.to_string());
        prop_assert!(plain.is_some());
        prop_assert_eq!(plain, read(&written), "{}", written);
    }

    #[test]
    fn never_panics(text in prop::collection::vec(prop::sample::select(br#"[]{}",:\ud8"role"content1.e-"#.to_vec()), 0..80)) {
        drop(Conversation::read("", &text));
    }
}

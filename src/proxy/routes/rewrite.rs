//! Edits of a body's top level: another model, some fields less. Every other byte stays as it came. Pure.

use bytes::Bytes;

use crate::proxy::scan::{Member, Members, skip_space};

/// The object `body` with the value of `model` replaced by the name `model`, and without the members called as one
/// of `drop_fields`. A body that is no object is left alone.
///
/// Copies the body if there is anything to change.
pub fn rewrite(body: &Bytes, model: Option<&str>, drop_fields: &[String]) -> Bytes {
    // A string always serialises.
    let model = model.map(|model| serde_json::to_vec(model).unwrap_or_default());
    let mut edit = Edit {
        body,
        copied: 0,
        out: Vec::new(),
    };
    let mut before = Members::body_start(body);
    let mut is_first = true;
    for member in Members::new(body) {
        let Ok(member) = member else {
            return body.clone();
        };
        let end = member.value.end;
        if is_named(&member, drop_fields) {
            edit.drop_member(is_first, before, end);
        } else {
            is_first = false;
            if let Some(model) = model.as_ref().filter(|_| member.key == b"model") {
                edit.replace(member.value.start, end, model);
            }
        }
        before = end;
    }
    edit.finish()
}

fn is_named(member: &Member<'_>, names: &[String]) -> bool {
    names.iter().any(|name| name.as_bytes() == member.key)
}

/// A body on its way to another.
struct Edit<'a> {
    body: &'a Bytes,
    /// What comes before this offset is in `out`, or is not wanted.
    copied: usize,
    out: Vec<u8>,
}

impl Edit<'_> {
    fn replace(&mut self, start: usize, end: usize, by: &[u8]) {
        let start = start.max(self.copied);
        self.out.extend_from_slice(&self.body[self.copied..start]);
        self.out.extend_from_slice(by);
        self.copied = end;
    }

    /// Drops the member whose value ends at `end` and the one comma too many. The member before it ends at `before`.
    fn drop_member(&mut self, is_first: bool, before: usize, end: usize) {
        let after = skip_space(self.body, end);
        let has_next = self.body.get(after) == Some(&b',');
        let end = if is_first && has_next { after + 1 } else { end };
        self.replace(before, end, b"");
    }

    fn finish(mut self) -> Bytes {
        if self.copied == 0 {
            return self.body.clone();
        }
        self.out.extend_from_slice(&self.body[self.copied..]);
        self.out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rewritten(body: &str, model: Option<&str>, drop: &[&str]) -> String {
        let drop: Vec<String> = drop.iter().map(|&name| name.to_owned()).collect();
        let out = rewrite(&Bytes::copy_from_slice(body.as_bytes()), model, &drop);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn only_the_models_value_changes() {
        let body =
            r#" { "a" : 1.50 , "model" : "gpt-5","messages":[{"model":"x"}], "é":"\u00e9" } "#;
        assert_eq!(
            rewritten(body, Some("/ckpt/\"8B\""), &[]),
            body.replacen("\"gpt-5\"", "\"/ckpt/\\\"8B\\\"\"", 1)
        );
        assert_eq!(rewritten(body, None, &[]), body);
        assert_eq!(rewritten("[1]", Some("x"), &["a"]), "[1]");
    }

    #[test]
    fn a_dropped_field_takes_one_comma_with_it() {
        let body = r#"{"a": 1 , "model":"m", "b":[2],"c":{} }"#;
        for (drop, left) in [
            (&["a"][..], r#"{ "model":"n", "b":[2],"c":{} }"#),
            (&["b"], r#"{"a": 1 , "model":"n","c":{} }"#),
            (&["c"], r#"{"a": 1 , "model":"n", "b":[2] }"#),
            (&["a", "b", "c"], r#"{ "model":"n" }"#),
            (&["a", "model", "b", "c"], "{ }"),
            (&["none"], r#"{"a": 1 , "model":"n", "b":[2],"c":{} }"#),
        ] {
            assert_eq!(rewritten(body, Some("n"), drop), left, "{drop:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_a_parser_would_leave(keys in prop::collection::btree_set("[a-f]|model", 0..6)) {
            let members: Vec<String> = keys.iter().map(|key| format!("\"{key}\" : \"1\"")).collect();
            let body = format!("{{{}}}", members.join(" , "));
            let out = rewritten(&body, Some("n"), &["a", "c", "f"]);
            let mut expected: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&body).unwrap();
            expected.retain(|key, _| !["a", "c", "f"].contains(&key.as_str()));
            if let Some(model) = expected.get_mut("model") {
                *model = "n".into();
            }
            let parsed: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&out).unwrap();
            prop_assert_eq!(parsed, expected);
        }
    }
}

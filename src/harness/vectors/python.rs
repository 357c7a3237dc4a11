//! JSON values as Python's `str` writes them, which is how the references turn an id into a name.

use std::fmt::Write as _;

use serde_json::{Number, Value};

/// `str(value)`.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            repr(value)
        }
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number_repr(number),
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", list(items.iter().map(repr).collect())),
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(key, value)| format!("{}: {}", quoted(key), repr(value)));
            format!("{{{}}}", list(members.collect()))
        }
    }
}

/// A number: floats have an exponent below 1e-4 and from 1e16 on, of two digits at least.
fn number_repr(number: &Number) -> String {
    let Some(value) = number.as_f64().filter(|_| number.is_f64()) else {
        return number.to_string();
    };
    if value.abs() > 0.0 && !(1e-4..1e16).contains(&value.abs()) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent
            .strip_prefix('-')
            .map_or(('+', exponent), |digits| ('-', digits));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value:?}")
}

/// A string literal: in single quotes, unless it has those and no double ones.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut literal = String::from(quote);
    for char in text.chars() {
        match char {
            '\\' => literal.push_str("\\\\"),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            '\0'..='\x1f' | '\x7f'..='\u{a0}' => {
                let _infallible = write!(literal, "\\x{:02x}", u32::from(char));
            }
            char if char == quote => literal.extend(['\\', quote]),
            char => literal.push(char),
        }
    }
    literal.push(quote);
    literal
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_read_as_python_writes_them() {
        for (value, expected) in [
            (json!("a'b"), "a'b"),
            (json!(1.5), "1.5"),
            (json!(1.0), "1.0"),
            (json!(-0.5e-4), "-5e-05"),
            (json!(1e16), "1e+16"),
            (json!(123_456_789_012_345_680.0), "1.2345678901234568e+17"),
            (json!(1e15), "1000000000000000.0"),
            (
                json!(18_446_744_073_709_551_615_u64),
                "18446744073709551615",
            ),
            (json!(["\u{1}é"]), "['\\x01é']"),
            (json!([null, true, "x"]), "[None, True, 'x']"),
            (json!({"a": "it's"}), "{'a': \"it's\"}"),
        ] {
            assert_eq!(text(&value), expected);
        }
    }
}

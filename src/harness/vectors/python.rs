//! JSON values as Python's `str` writes them, which is how the references turn an id into a name.

use serde_json::{Number, Value};

use crate::harness::reference::python::{float_repr, str_repr};

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
        Value::String(text) => str_repr(text),
        Value::Array(items) => format!("[{}]", list(items.iter().map(repr).collect())),
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(key, value)| format!("{}: {}", str_repr(key), repr(value)));
            format!("{{{}}}", list(members.collect()))
        }
    }
}

fn number_repr(number: &Number) -> String {
    let float = number.as_f64().filter(|_| number.is_f64());
    float.map_or_else(|| number.to_string(), float_repr)
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

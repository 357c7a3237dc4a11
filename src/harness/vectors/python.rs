//! JSON values as Python's `str` writes them, which is how the references turn an id into a name.

use serde_json::Value;

use crate::harness::reference::python::str_repr;

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
        Value::Number(number) => number.to_string(),
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
            (json!([null, true, "x"]), "[None, True, 'x']"),
            (json!({"a": "it's"}), "{'a': \"it's\"}"),
        ] {
            assert_eq!(text(&value), expected);
        }
    }
}

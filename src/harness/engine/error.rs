//! Refusals in vLLM's words: `{"error":{"message","type","param","code"}}` with the HTTP status as code.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, error::Category};

/// Fields that hold whole numbers.
const INTEGERS: [&str; 6] = [
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "n",
    "priority",
    "seed",
];

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Fields<'a>,
}

#[derive(Serialize)]
struct Fields<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: u16,
}

impl ApiError {
    /// A request that is well formed but cannot be served, about `param`.
    pub(super) fn bad_request(message: impl Into<String>, param: Option<&str>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "BadRequestError",
            message: message.into(),
            param: param.map(str::to_owned),
        }
    }

    /// A parameter out of range; vLLM repeats its name and value behind the sentence.
    pub(super) fn parameter(sentence: &str, param: &str, value: impl std::fmt::Display) -> Self {
        let message = format!("{sentence} (parameter={param}, value={value})");
        Self::bad_request(message, Some(param))
    }

    /// The prompt alone is as long as the context may be. The number named is the limit plus one, as in vLLM,
    /// which stops counting there.
    pub(super) fn context_length(max_model_len: u32) -> Self {
        let at_least = u64::from(max_model_len) + 1;
        Self::parameter(
            &format!(
                "This model's maximum context length is {max_model_len} tokens. However, your prompt contains \
                 at least {at_least} input tokens, which exceeds this limit even without any output tokens. \
                 Please reduce the length of the input prompt."
            ),
            "input_tokens",
            at_least,
        )
    }

    /// A model that is not served here.
    pub(super) fn unknown_model(name: &str, served: &[String]) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            message: format!(
                "The model `{name}` does not exist. Valid aliases: {}.",
                served.join(", ")
            ),
            param: Some("model".to_owned()),
        }
    }

    /// The engine has as many requests as it takes.
    pub(super) fn busy() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "Service Unavailable",
            message: "The engine is currently busy and cannot accept new requests. Please try again later or \
                      on a different instance."
                .to_owned(),
            param: None,
        }
    }

    /// The engine stopped while the request was in it.
    pub(super) fn stopped() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "InternalServerError",
            message: "the engine stopped before the request was finished".to_owned(),
            param: None,
        }
    }

    /// A body that does not parse, or not as the request it should be.
    ///
    /// The typed parser only says *that*; this looks again, at leisure, for the reason in vLLM's terms.
    pub(super) fn invalid(body: &[u8], reason: &str, required: &str) -> Self {
        if body.is_empty() {
            return Self::validation("missing", "body", "Field required", "None", "");
        }
        match serde_json::from_slice::<Value>(body) {
            Err(syntax) => Self::json_invalid(body, &syntax),
            Ok(value) => Self::mistyped(&value, reason, required),
        }
    }

    fn json_invalid(body: &[u8], error: &serde_json::Error) -> Self {
        // Where the parser stood, as an offset: it counts lines from 1 and columns in bytes.
        let lines = body.split_inclusive(|byte| *byte == b'\n');
        let before: usize = lines.take(error.line() - 1).map(<[u8]>::len).sum();
        let mut offset = (before + error.column()).min(body.len());
        if error.classify() != Category::Eof {
            offset = offset.saturating_sub(1);
        }
        // A misspelt word is at fault from its first letter.
        let word = body[..offset].iter().rev();
        offset -= word.take_while(|byte| byte.is_ascii_alphabetic()).count();
        let text = error.to_string();
        let cause = if text.starts_with("trailing comma") || text.starts_with("key must be") {
            "'Expecting property name enclosed in double quotes'"
        } else if text.starts_with("expected `,`") || text.starts_with("EOF while parsing a") {
            r#""Expecting ',' delimiter""#
        } else {
            "'Expecting value'"
        };
        Self::validation(
            "json_invalid",
            &format!("body.{offset}"),
            "JSON decode error",
            "<dict of 0 items>",
            &format!(", 'ctx': {{'error': {cause}}}"),
        )
    }

    fn mistyped(value: &Value, reason: &str, required: &str) -> Self {
        let Value::Object(fields) = value else {
            let sentence = "Input should be a valid dictionary or object to extract fields from";
            return Self::validation("model_attributes_type", "body", sentence, &input(value), "");
        };
        if required == "messages" {
            let place = "body.messages";
            match fields.get("messages") {
                None => {
                    let input = input(value);
                    return Self::validation("missing", place, "Field required", &input, "");
                }
                Some(text @ Value::String(_)) => {
                    let sentence = "Input should be a valid list";
                    return Self::validation("list_type", place, sentence, &input(text), "");
                }
                Some(_) => {}
            }
        }
        for name in INTEGERS {
            if let Some(given) = fields.get(name)
                && let Some((kind, sentence)) = not_an_integer(given)
            {
                let place = format!("body.{name}");
                return Self::validation(kind, &place, sentence, &input(given), "");
            }
        }
        Self::validation("value_error", "body", reason, &input(value), "")
    }

    fn validation(kind: &str, place: &str, sentence: &str, input: &str, more: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "Bad Request",
            message: format!(
                "1 validation error:\n  {{'type': '{kind}', 'loc': '{place}', 'msg': '{sentence}', \
                 'input': '{input}'{more}}}"
            ),
            param: Some(place.to_owned()),
        }
    }

    /// The response body.
    pub(super) fn body(&self) -> String {
        let body = Body {
            error: Fields {
                message: &self.message,
                r#type: self.kind,
                param: self.param.as_deref(),
                code: self.status.as_u16(),
            },
        };
        serde_json::to_string(&body).unwrap_or_default()
    }
}

/// What is wrong with a value where an integer belongs; `None` for what is accepted or rare.
fn not_an_integer(value: &Value) -> Option<(&'static str, &'static str)> {
    if value.is_string() {
        let sentence = "Input should be a valid integer, unable to parse string as an integer";
        return Some(("int_parsing", sentence));
    }
    value.is_f64().then_some((
        "int_from_float",
        "Input should be a valid integer, got a number with a fractional part",
    ))
}

/// How vLLM shows an offending value.
fn input(value: &Value) -> String {
    match value {
        Value::Object(fields) => format!("<dict of {} items>", fields.len()),
        Value::Array(items) => format!("<list of {} items>", items.len()),
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = [(header::CONTENT_TYPE, "application/json")];
        (self.status, json, self.body()).into_response()
    }
}

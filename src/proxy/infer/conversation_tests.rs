use serde_json::{Value, json};

use super::*;

fn read(messages: &str) -> Conversation {
    Conversation::read("m", messages.as_bytes()).unwrap()
}

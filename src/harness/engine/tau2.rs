//! The two models of a tau2-bench conversation, played so that it goes somewhere and ends by itself. Pure.
//!
//! The benchmark's prompts tell the roles: the customer's system message has a `<scenario>`, the agent's a `<policy>`.
//! The customer states the scenario, answers a few times and stops. The agent calls reading tools, with arguments of
//! which it finds in the conversation what they look like, then answers. Everything follows from the request and the
//! seed. What is not prescribed here is filler, as in every other answer.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::body::{Message, text_of};
use super::core::output::mix;

/// With which the customer of tau2-bench ends a conversation.
const STOP: &str = "###STOP###";
/// Times that the customer speaks before it stops: at least, and how many numbers from there on.
const TURNS: (u64, u64) = (3, 5);
/// Bytes of the scenario that the customer states.
const STATED: usize = 1_500;
/// Tool calls of the agent after each message of the customer.
const CALLS: usize = 2;
/// How the names of tools begin that change nothing.
const READING: [&str; 4] = ["get_", "find_", "list_", "check_"];

/// What the model does, where that is more than talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Says this, and no more.
    Say(String),
    /// Calls a tool with arguments, a JSON object.
    Call { name: String, arguments: String },
}

/// A tool as it is offered, as far as it matters here.
#[derive(Deserialize)]
struct Tool {
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    required: Vec<String>,
}

/// What is prescribed for this request; `None` if it is no tau2-bench request, or is answered with talk. `seed` is the
/// engine's, `dice` a number that differs from request to request.
pub(super) fn act(
    messages: &[Message],
    tools: Option<&RawValue>,
    seed: u64,
    dice: u64,
) -> Option<Act> {
    let system = text_of(messages.first().filter(|first| first.role == "system")?);
    if let Some((_, rest)) = system.split_once("<scenario>") {
        return customer(rest, messages, seed);
    }
    if system.contains("<policy>") {
        return agent(messages, tools?, dice);
    }
    None
}

fn customer(scenario: &str, messages: &[Message], seed: u64) -> Option<Act> {
    let said = messages
        .iter()
        .filter(|it| it.role == "assistant" && it.tool_calls.is_none());
    let said = said.count() as u64;
    let scenario = scenario
        .split_once("</scenario>")
        .map_or(scenario, |(inside, _)| inside);
    if said == 0 {
        return Some(Act::Say(stated(scenario)));
    }
    // The same number in every request of a conversation: nothing but the scenario goes into it.
    let dice = scenario
        .bytes()
        .fold(seed, |sum, byte| mix(sum ^ u64::from(byte)));
    (said >= TURNS.0 + dice % TURNS.1).then(|| Act::Say(STOP.to_owned()))
}

/// The scenario in one line, in the characters that the engine can say.
fn stated(scenario: &str) -> String {
    let words = scenario.split_whitespace().collect::<Vec<_>>().join(" ");
    let text: String = words
        .chars()
        .filter(|c| c.is_ascii() && !c.is_ascii_control())
        .take(STATED)
        .collect();
    if text.is_empty() {
        "Hello.".to_owned()
    } else {
        text
    }
}

fn agent(messages: &[Message], tools: &RawValue, dice: u64) -> Option<Act> {
    let is_told = |it: &Message| it.role != "tool" && it.tool_calls.is_none();
    let told = messages.iter().rposition(is_told)?;
    let calls = messages
        .iter()
        .skip(told)
        .filter(|it| it.tool_calls.is_some())
        .count();
    if calls >= CALLS {
        return None;
    }
    let tools: Vec<Tool> = serde_json::from_str(tools.get()).ok()?;
    let text: Vec<_> = messages.iter().skip(1).map(text_of).collect();
    let text = text.join("\n");
    let possible: Vec<Act> = tools
        .iter()
        .filter_map(|tool| call(tool, &text, dice))
        .collect();
    let chosen = usize::try_from(mix(dice) % (possible.len().max(1) as u64)).ok()?;
    possible.into_iter().nth(chosen)
}

/// A call of the tool, if it only reads and all that it requires is in `text`.
fn call(tool: &Tool, text: &str, dice: u64) -> Option<Act> {
    let name = &tool.function.name;
    if !READING.iter().any(|start| name.starts_with(start)) {
        return None;
    }
    let mut arguments = serde_json::Map::new();
    for required in &tool.function.parameters.required {
        let mut found: Vec<&str> = words(text)
            .filter(|word| looks_like(required, word))
            .collect();
        found.sort_unstable();
        found.dedup();
        let chosen = usize::try_from(dice % (found.len().max(1) as u64)).ok()?;
        arguments.insert(required.clone(), (*found.get(chosen)?).into());
    }
    Some(Act::Call {
        name: name.clone(),
        arguments: serde_json::Value::Object(arguments).to_string(),
    })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let inside = |c: char| c.is_ascii_alphanumeric() || "_#@.-".contains(c);
    text.split(move |c| !inside(c))
        .map(|word| word.trim_matches(['.', '-']))
}

/// Whether the word has the shape of the benchmark's identifiers of that name.
fn looks_like(name: &str, word: &str) -> bool {
    let lower = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    let digits = |part: &str, n: usize| part.len() == n && part.bytes().all(|b| b.is_ascii_digit());
    let after = |start: &str, n| word.strip_prefix(start).is_some_and(|rest| digits(rest, n));
    match name {
        "user_id" => matches!(word.split('_').collect::<Vec<_>>()[..],
            [first, last, number] if lower(first) && lower(last) && digits(number, 4)),
        "order_id" => after("#W", 7),
        "customer_id" => after("C", 4),
        "line_id" => after("L", 4),
        "phone_number" => matches!(word.split('-').collect::<Vec<_>>()[..],
            [area, exchange, number] if digits(area, 3) && digits(exchange, 3) && digits(number, 4)),
        "reservation_id" => {
            word.len() == 6
                && word
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
                && word.bytes().any(|b| b.is_ascii_digit())
        }
        "email" => word
            .split_once('@')
            .is_some_and(|(user, host)| !user.is_empty() && host.contains('.')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(json: &str) -> Vec<Message> {
        serde_json::from_str(json).unwrap()
    }

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    /// The customer's request after it spoke `said` times.
    fn customer_after(said: usize, scenario: &str) -> Vec<Message> {
        let mut list = vec![format!(
            r#"{{"role":"system","content":"<scenario>{scenario}</scenario>"}}"#
        )];
        list.push(r#"{"role":"user","content":"Hi!"}"#.to_owned());
        for _ in 0..said {
            list.push(r#"{"role":"assistant","content":"mine"}"#.to_owned());
            list.push(r#"{"role":"user","content":"yours"}"#.to_owned());
        }
        messages(&format!("[{}]", list.join(",")))
    }

    #[test]
    fn the_customer_states_its_scenario_talks_and_stops_after_three_to_seven_turns() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let first = act(&customer_after(0, "I am\\n\\tyara_ito_1234"), None, seed, 0);
            assert_eq!(first, Some(Act::Say("I am yara_ito_1234".to_owned())));
            let last =
                (1..20).find(|said| act(&customer_after(*said, "x"), None, seed, 0).is_some());
            let last = last.unwrap();
            let stop = act(&customer_after(last, "x"), None, seed, 99);
            assert_eq!(
                stop,
                Some(Act::Say(STOP.to_owned())),
                "whatever the request"
            );
            lengths.insert(last);
        }
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    }

    const TOOLS: &str = r#"[
        {"type":"function","function":{"name":"cancel_order","parameters":{"required":[]}}},
        {"type":"function","function":{"name":"get_order","parameters":{"type":"object","required":["order_id"]}}},
        {"type":"function","function":{"name":"get_weather","parameters":{"required":["city"]}}}
    ]"#;

    #[test]
    fn the_agent_reads_with_arguments_from_the_conversation_then_answers() {
        let asked = r#"{"role":"system","content":"<policy>"},{"role":"user","content":"Where is #W0000042?"}"#;
        let called = r#"{"role":"assistant","tool_calls":[{"function":{"name":"get_order","arguments":"{}"}}]},
            {"role":"tool","content":"{}"}"#;
        let tools = raw(TOOLS);
        let acts = |list: &str| act(&messages(&format!("[{list}]")), Some(&tools), 1, 2);
        let call = Some(Act::Call {
            name: "get_order".to_owned(),
            arguments: r##"{"order_id":"#W0000042"}"##.to_owned(),
        });
        assert_eq!(acts(asked), call);
        assert_eq!(acts(&format!("{asked},{called}")), call);
        assert_eq!(acts(&format!("{asked},{called},{called}")), None);
    }

    #[test]
    fn other_requests_are_none_of_its_business() {
        let tools = raw(TOOLS);
        let list =
            r##"[{"role":"system","content":"Be kind."},{"role":"user","content":"#W0000042"}]"##;
        assert_eq!(act(&messages(list), Some(&tools), 1, 2), None);
    }

    #[test]
    fn identifiers_are_told_by_their_shape() {
        for (name, yes, no) in [
            ("user_id", "yara_ito_1234", "yara_1234"),
            ("order_id", "#W1234567", "#W123"),
            ("reservation_id", "4WQ150", "POLICY"),
            ("phone_number", "555-123-2002", "555-1232"),
            ("customer_id", "C1001", "C1"),
            ("line_id", "L1002", "X1002"),
            ("email", "a.b@c.com", "a@b"),
        ] {
            assert!(looks_like(name, yes) && !looks_like(name, no), "{name}");
        }
        assert_eq!(
            words("(#W1.) a-b, c@d.e.")
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>(),
            ["#W1", "a-b", "c@d.e"]
        );
    }
}

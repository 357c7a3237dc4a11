//! `[routes]` and `--route`: from text to checked [`RouteConfig`]s. Keys are read from the environment here, and
//! printed nowhere.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::proxy::routes::{
    ApiKey, Endpoints, Latency, Pattern, Preset, Role, RouteConfig, StandIn, Target,
};

/// Entries by model or glob.
pub(super) type Table = BTreeMap<String, Entry>;

/// What a variable of the environment holds, if it is set.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One table `[routes.MODEL]`, as written.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Entry {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    urls: Vec<String>,
    api_key_env: Option<String>,
    ca_file: Option<PathBuf>,
    backend: Option<String>,
    model: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    drop_fields: Vec<String>,
    role: Option<Role>,
    /// A preset's name, or a [`Drawn`].
    stand_in: Option<toml::Value>,
}

/// A stand-in given by a table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Drawn {
    preset: Option<String>,
    median_ms: Option<f64>,
    p90_ms: Option<f64>,
    seed: Option<u64>,
    text: Option<String>,
    stop_after: Option<u32>,
}

/// The word of `backend` for an alias.
const SCHEDULED: &str = "scheduled";

/// How `--route` names a stand-in and an alias.
const STAND_IN_PREFIX: &str = "stand-in:";
const SCHEDULED_PREFIX: &str = "scheduled:";

/// The table of the file, and over it what was typed: `MODEL=TARGET`, where several URLs of one model are one route.
pub(super) fn merge(file: Option<toml::Value>, typed: &[String]) -> Result<Table, ConfigError> {
    let mut table = Table::new();
    let written = match file {
        None => toml::Table::new(),
        Some(toml::Value::Table(written)) => written,
        Some(_) => {
            return Err(ConfigError::new(
                "routes: it is no table; write [routes.\"MODEL\"] and below it urls = [\"http://HOST:PORT/v1\"]",
            ));
        }
    };
    for (model, value) in written {
        if let Some(rest) = nested(&value) {
            return Err(wrong(
                &model,
                format!(
                    "there is a table {rest:?} in it; write a name with dots in quotes: [routes.\"{model}.{rest}\"]"
                ),
            ));
        }
        let entry = value
            .try_into()
            .map_err(|error: toml::de::Error| wrong(&model, error.message().replace('\n', " ")))?;
        table.insert(model, entry);
    }
    let mut flags = Table::new();
    for text in typed {
        let (model, target) = text
            .split_once('=')
            .filter(|(model, target)| !model.is_empty() && !target.is_empty())
            .ok_or_else(|| {
                ConfigError::new(format!(
                    "route: {text:?} is not MODEL=TARGET; write MODEL=URL, MODEL=stand-in:PRESET or MODEL=scheduled:SERVED_MODEL"
                ))
            })?;
        flags.entry(model.to_owned()).or_default().add(target);
    }
    table.extend(flags);
    Ok(table)
}

/// The rest of a name with dots that was written without quotes.
fn nested(value: &toml::Value) -> Option<&str> {
    let mut tables = value
        .as_table()?
        .iter()
        .filter(|(key, value)| key.as_str() != "stand_in" && value.is_table());
    tables.next().map(|(key, _)| key.as_str())
}

/// The checked routes, by the alphabet.
pub(super) fn check(
    table: &Table,
    environment: Environment<'_>,
) -> Result<Vec<RouteConfig>, ConfigError> {
    let check = |(model, entry): (&String, &Entry)| {
        entry
            .check(model, environment)
            .map_err(|problem| wrong(model, problem))
    };
    table.iter().map(check).collect()
}

fn wrong(model: &str, problem: impl std::fmt::Display) -> ConfigError {
    ConfigError::new(format!("routes.{model:?}: {problem}"))
}

impl Entry {
    /// One more target of a `--route`.
    fn add(&mut self, target: &str) {
        if let Some(preset) = target.strip_prefix(STAND_IN_PREFIX) {
            self.stand_in = Some(toml::Value::String(preset.to_owned()));
        } else if let Some(model) = target.strip_prefix(SCHEDULED_PREFIX) {
            self.backend = Some(SCHEDULED.to_owned());
            self.model = Some(model.to_owned());
        } else {
            self.urls.push(target.to_owned());
        }
    }

    fn check(&self, model: &str, environment: Environment<'_>) -> Result<RouteConfig, String> {
        if model.is_empty() {
            return Err("it names no model; write its name, or * for every other".to_owned());
        }
        if self.model.as_deref() == Some("") {
            return Err(
                "model: it is empty; write the name that is sent, or leave it away".to_owned(),
            );
        }
        let (target, usual) = self.target(environment)?;
        Ok(RouteConfig {
            pattern: Pattern::new(model.to_owned()),
            role: self.role.unwrap_or(usual),
            model: self.model.clone(),
            drop_fields: self.drop_fields.clone(),
            target,
        })
    }

    /// Where requests go, and whose they are if nothing says.
    fn target(&self, environment: Environment<'_>) -> Result<(Target, Role), String> {
        match (&self.urls[..], &self.backend, &self.stand_in) {
            ([_, ..], None, None) => {
                let endpoints = self.endpoints(environment)?;
                Ok((Target::Endpoints(endpoints), Role::Expert))
            }
            ([], Some(word), None) => {
                self.only_for_urls()?;
                if word != SCHEDULED {
                    return Err(format!(
                        "backend: {word:?} is unknown; write \"scheduled\", or urls = [\"http://HOST:PORT/v1\"]"
                    ));
                }
                if self.model.is_none() {
                    return Err(
                        "model: it is missing; write the model that the scheduled backends serve"
                            .to_owned(),
                    );
                }
                Ok((Target::Scheduled, Role::Agent))
            }
            ([], None, Some(value)) => {
                self.only_for_urls()?;
                if self.model.is_some() || !self.drop_fields.is_empty() {
                    return Err(
                        "stand_in: nothing is sent on; leave model and drop_fields away".to_owned(),
                    );
                }
                let (stand_in, role) = stand_in(value)?;
                Ok((Target::StandIn(stand_in), role))
            }
            _ => Err(
                "it needs one target; write either urls, or stand_in, or backend = \"scheduled\""
                    .to_owned(),
            ),
        }
    }

    /// What only a route to other servers can have.
    fn only_for_urls(&self) -> Result<(), String> {
        match (&self.api_key_env, &self.ca_file) {
            (None, None) => Ok(()),
            _ => Err("api_key_env and ca_file: they are for urls; leave them away".to_owned()),
        }
    }

    fn endpoints(&self, environment: Environment<'_>) -> Result<Endpoints, String> {
        let parse = |(at, url): (usize, &String)| {
            url.parse()
                .map_err(|problem| format!("urls, number {}: {problem}", at + 1))
        };
        let key = |variable: &String| {
            let value = environment(variable).filter(|value| !value.is_empty());
            let value = value.ok_or_else(|| {
                format!("api_key_env: the environment variable {variable} is not set; export it with the key")
            })?;
            ApiKey::new(variable.clone(), value.trim()).ok_or_else(|| {
                format!("api_key_env: what {variable} holds cannot be sent in a header; set it to the key alone")
            })
        };
        Ok(Endpoints {
            urls: self
                .urls
                .iter()
                .enumerate()
                .map(parse)
                .collect::<Result<_, _>>()?,
            key: self.api_key_env.as_ref().map(key).transpose()?,
            ca_file: self.ca_file.clone(),
        })
    }
}

fn stand_in(value: &toml::Value) -> Result<(StandIn, Role), String> {
    let drawn = match value.as_str() {
        Some(name) => Drawn {
            preset: Some(name.to_owned()),
            ..Drawn::default()
        },
        None => value
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| format!("stand_in: {}", error.message()))?,
    };
    let name = drawn.preset.as_deref().unwrap_or("expert");
    let preset = Preset::named(name).ok_or_else(|| {
        let known = Preset::ALL.map(|preset| preset.name).join(", ");
        format!("stand_in: there is no preset {name:?}; choose one of {known}")
    })?;
    let (median_s, p90_s) = match (drawn.median_ms, drawn.p90_ms) {
        (None, None) => (preset.median_s, preset.p90_s),
        (Some(median_ms), Some(p90_ms)) => (median_ms / 1e3, p90_ms / 1e3),
        _ => return Err("stand_in: median_ms and p90_ms go together; write both".to_owned()),
    };
    let latency = Latency::fit(median_s, p90_s).ok_or(
        "stand_in: median_ms and p90_ms are no percentiles; write numbers above 0, p90_ms not below median_ms",
    )?;
    let stand_in = StandIn {
        latency,
        seed: drawn.seed.unwrap_or(0),
        text: drawn.text.unwrap_or_else(|| preset.text.to_owned()),
        stop_after: drawn.stop_after.or(preset.stop_after),
    };
    Ok((stand_in, preset.role))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variable: &str) -> Option<String> {
        match variable {
            "SET" => Some("sk-secret\n".to_owned()),
            "BROKEN" => Some("sk-\nsecret".to_owned()),
            _ => None,
        }
    }

    fn parsed(file: &str) -> toml::Table {
        toml::from_str(file).unwrap()
    }

    fn load(file: &str, typed: &[&str]) -> Result<Vec<RouteConfig>, ConfigError> {
        let mut file = parsed(file);
        let typed: Vec<String> = typed.iter().map(|&text| text.to_owned()).collect();
        let table = merge(file.remove("routes"), &typed)?;
        check(&table, &environment)
    }

    #[test]
    fn a_table_says_where_a_models_requests_go() {
        let routes = load(
            r#"
            [routes."gpt-5"]
            urls = ["https://api.openai.com/v1"]
            api_key_env = "SET"
            drop_fields = ["job_id"]
            role = "user"
            [routes."gpt-4*"]
            backend = "scheduled"
            model = "/ckpt/Orchestrator-8B"
            [routes."openai/gpt-oss-20b"]
            stand_in = "expert"
            [routes."Qwen/Qwen3-32B-FP8"]
            stand_in = { median_ms = 1000, p90_ms = 2000, seed = 7, text = "no" }
            "#,
            &[],
        )
        .unwrap();
        let shown: Vec<_> = routes
            .iter()
            .map(|route| (route.pattern.as_str(), route.role))
            .collect();
        assert_eq!(
            shown,
            [
                ("Qwen/Qwen3-32B-FP8", Role::Expert),
                ("gpt-4*", Role::Agent),
                ("gpt-5", Role::User),
                ("openai/gpt-oss-20b", Role::Expert),
            ]
        );
        let Target::StandIn(drawn) = &routes[0].target else {
            panic!("{:?}", routes[0]);
        };
        assert_eq!((drawn.seed, drawn.text.as_str()), (7, "no"));
        assert_eq!(Some(drawn.latency), Latency::fit(1.0, 2.0));
        let Target::Endpoints(endpoints) = &routes[2].target else {
            panic!("{:?}", routes[2]);
        };
        assert_eq!(endpoints.key.as_ref().unwrap().bearer(), "Bearer sk-secret");
        assert!(!format!("{routes:?}").contains("secret"));
    }

    #[test]
    fn a_flag_gives_a_route_in_short_and_replaces_that_of_the_file() {
        let routes = load(
            "[routes.m]\nstand_in = \"user\"",
            &[
                "m=http://a:1/v1",
                "gpt-5=stand-in:user",
                "m=http://b:2/v1",
                "gpt-4*=scheduled:served=x",
            ],
        )
        .unwrap();
        assert_eq!(routes[0].model.as_deref(), Some("served=x"));
        assert_eq!(routes[1].role, Role::User);
        let Target::Endpoints(endpoints) = &routes[2].target else {
            panic!("{:?}", routes[2]);
        };
        assert_eq!(endpoints.urls.len(), 2);
    }

    #[test]
    fn a_wrong_route_is_one_line_that_names_it_and_the_remedy() {
        for (entry, words) in [
            ("", "needs one target"),
            (
                "urls = [\"http://a\"]\nstand_in = \"user\"",
                "needs one target",
            ),
            ("urls = [\"a:1\"]", "urls, number 1: it is no URL"),
            (
                "urls = [\"http://a\"]\napi_key_env = \"UNSET\"",
                "variable UNSET is not set",
            ),
            (
                "urls = [\"http://a\"]\napi_key_env = \"BROKEN\"",
                "what BROKEN holds",
            ),
            (
                "urls = [\"http://a\"]\nurl = \"http://b\"",
                "unknown field `url`",
            ),
            ("urls = [\"http://a\"]\nrole = \"x\"", "unknown variant `x`"),
            ("urls = [\"http://a\"]\nmodel = \"\"", "model: it is empty"),
            (
                "backend = \"http://a\"\nmodel = \"x\"",
                "write \"scheduled\"",
            ),
            ("backend = \"scheduled\"", "model: it is missing"),
            (
                "backend = \"scheduled\"\nmodel = \"x\"\napi_key_env = \"SET\"",
                "api_key_env",
            ),
            ("stand_in = \"gpt-5\"", "choose one of expert, "),
            ("stand_in = \"user\"\nmodel = \"x\"", "leave model"),
            ("stand_in = { median_ms = 5 }", "write both"),
            ("stand_in = { median_ms = 5, p90_ms = 4 }", "no percentiles"),
            ("stand_in = { mean_ms = 5 }", "unknown field `mean_ms`"),
            ("stand_in = 5", "stand_in: "),
        ] {
            let error = load(&format!("[routes.\"gpt-*\"]\n{entry}"), &[]);
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with("routes.\"gpt-*\": "), "{error}");
            assert!(
                error.contains(words) && !error.contains('\n'),
                "{entry}: {error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
        for (typed, words) in [("gpt-5", "MODEL=TARGET"), ("=http://a", "MODEL=TARGET")] {
            let error = load("", &[typed]).unwrap_err().to_string();
            assert!(error.contains(words), "{typed}: {error}");
        }
        let error = load("[routes.gpt-4.1-mini]\nstand_in = \"user\"", &[]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("in quotes: [routes.\"gpt-4.1-mini\"]"),
            "{error}"
        );
        let error = load("routes = 5", &[]).unwrap_err().to_string();
        assert!(error.contains("[routes.\"MODEL\"]"), "{error}");
    }
}

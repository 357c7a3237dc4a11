//! What an engine says of itself over HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::telemetry::prometheus_text;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How often an engine that starts is asked.
const POLL: Duration = Duration::from_millis(100);

/// One of the models that an engine serves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Model {
    pub(super) id: String,
    pub(super) max_model_len: Option<u64>,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

/// What an engine says of itself beside its models, as far as it does.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Facts {
    /// Its version, by `/version`.
    pub(super) version: Option<String>,
    /// Labels of vLLM's `cache_config_info`: block size, number of blocks and more.
    pub(super) cache_config: Option<BTreeMap<String, String>>,
}

/// A client of one engine.
#[derive(Debug)]
pub(super) struct Probe {
    http: reqwest::Client,
    url: String,
}

impl Probe {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            url: url.to_owned(),
        })
    }

    /// Asks until `/health` is good and `/v1/models` lists one; `missing` says meanwhile what it is that is not yet so.
    pub(super) async fn ready(&self, missing: &mut String) -> Vec<Model> {
        loop {
            match self.models_if_healthy().await {
                Ok(models) => return models,
                Err(error) => *missing = format!("{error:#}"),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn models_if_healthy(&self) -> anyhow::Result<Vec<Model>> {
        self.get("/health").await?;
        let text = self.get("/v1/models").await?;
        let models: Models = serde_json::from_str(&text).context("/v1/models lists no models")?;
        anyhow::ensure!(!models.data.is_empty(), "/v1/models lists no model");
        Ok(models.data)
    }

    /// What it says beside; an engine that is no vLLM need not say anything.
    pub(super) async fn facts(&self) -> Facts {
        let version = self.get("/version").await.ok();
        let version = version.and_then(|text| serde_json::from_str::<Version>(&text).ok());
        let metrics = self.get("/metrics").await.unwrap_or_default();
        Facts {
            version: version.map(|it| it.version),
            cache_config: cache_config(&metrics),
        }
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let url = format!("{}{path}", self.url);
        let response = self.http.get(&url).timeout(ANSWER).send().await;
        let response = response.and_then(reqwest::Response::error_for_status);
        let text = match response {
            Ok(response) => response.text().await,
            Err(error) => Err(error),
        };
        text.with_context(|| path.to_owned())
    }
}

fn cache_config(metrics: &str) -> Option<BTreeMap<String, String>> {
    let mut samples = prometheus_text::samples(metrics).flatten();
    let info = samples.find(|sample| sample.name == "vllm:cache_config_info")?;
    let labels = info.raw_labels();
    Some(
        labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labels_of_the_cache_are_its_description() {
        let text = "vllm:num_requests_running 1\n\
                    vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"5301\"} 1.0\n";
        let config = cache_config(text).unwrap();
        assert_eq!(config["num_gpu_blocks"], "5301");
        assert_eq!(cache_config("up 1\n"), None);
    }
}

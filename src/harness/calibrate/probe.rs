//! What is asked of the server, and how long it takes.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::future::join_all;
use indicatif::ProgressBar;

use super::fit::Point;
use super::plan::{Cache, Plan};
use crate::clock::Clock;
use crate::harness::replay::client::{Client, Model, Served, StepError};
use crate::harness::replay::text::{push_text, text_seed};
use crate::harness::stats::percentile;
use crate::telemetry::scrape::Scrape;

/// Longest that one request may take.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// A server under test.
#[derive(Debug)]
pub struct Probe<'a> {
    client: Client,
    clock: Clock,
    model: String,
    max_model_len: Option<u64>,
    /// Distinguishes the texts of this run from those of any other.
    seed: u64,
    /// Texts sent so far: each prompt is a new one.
    sent: usize,
    bar: &'a ProgressBar,
}

impl<'a> Probe<'a> {
    /// A probe of the server at `url`; `seed` must differ from run to run, or prompts are found in its cache.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn new(
        url: &str,
        model: Option<String>,
        clock: Clock,
        seed: u64,
        bar: &'a ProgressBar,
    ) -> anyhow::Result<Self> {
        let client = Client::new(url, clock, TIMEOUT)?;
        let model = match model {
            Some(name) => named(&client, name).await,
            None => client.first_model().await?,
        };
        Ok(Self {
            client,
            clock,
            model: model.id,
            max_model_len: model.max_model_len,
            seed,
            sent: 0,
            bar,
        })
    }

    /// The model asked for.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The most tokens of a request, if the server says.
    pub const fn max_model_len(&self) -> Option<u64> {
        self.max_model_len
    }

    /// The server's cache.
    ///
    /// # Errors
    /// When `/metrics` cannot be read or does not say.
    pub async fn cache(&self) -> anyhow::Result<Cache> {
        let scrape = Scrape::parse(&self.client.metrics().await?);
        let tokens = scrape.kv_capacity.context(
            "/metrics has no vllm:cache_config_info with a KV capacity; is this a vLLM, and not a gate?",
        )?;
        let block = scrape.block_size.unwrap_or(16);
        Ok(Cache {
            // Some versions count the null block, which holds nothing.
            tokens: tokens.0.saturating_sub(block),
            block: u32::try_from(block)?,
        })
    }

    /// Measures what is in `plan`, of which the lengths fit into `cache`, and the batches as far as they do.
    ///
    /// # Errors
    /// A request that fails for another reason than its length.
    pub async fn measure(&mut self, plan: &Plan, cache: Cache) -> anyhow::Result<Vec<Point>> {
        // The first request of a server pays for what is compiled and allocated.
        let warm = self.prompt(64);
        self.send(&warm, plan.output).await?;
        let mut points = Vec::new();
        for &tokens in &plan.prompts {
            self.first_tokens(tokens, plan.rounds, cache.block, &mut points)
                .await?;
            self.bar.inc(1);
        }
        for &context in &plan.contexts {
            self.decodes(context, plan, cache, &mut points).await?;
        }
        Ok(points)
    }

    /// The time to the first token of a new prompt, and of the same prompt again.
    async fn first_tokens(
        &mut self,
        tokens: u32,
        rounds: u32,
        block: u32,
        points: &mut Vec<Point>,
    ) -> anyhow::Result<()> {
        let (mut new, mut again) = (Vec::new(), Vec::new());
        for _ in 0..rounds.max(1) {
            let body = self.prompt(tokens);
            for points in [&mut new, &mut again] {
                let arrived = self.clock.now();
                let Some(served) = self.send(&body, 1).await? else {
                    return Ok(());
                };
                let usage = served.reply.usage.context("the server reports no usage")?;
                let prompt = u32::try_from(usage.prompt)?;
                let seconds = served.first_token.since(arrived).as_secs_f64();
                points.push((prompt, usage.cached, seconds));
            }
        }
        // Without a report: nothing of a new prompt, all whole blocks but the last token of a known one.
        let known = |prompt: u32| (prompt.saturating_sub(1) / block) * block;
        points.extend(median_of(&new, |_| 0));
        points.extend(median_of(&again, known));
        Ok(())
    }

    /// The time between tokens in every batch that fits.
    async fn decodes(
        &mut self,
        context: u32,
        plan: &Plan,
        cache: Cache,
        points: &mut Vec<Point>,
    ) -> anyhow::Result<()> {
        let batches: Vec<u32> = plan.batches_within(context, cache).collect();
        let widest = batches.iter().copied().max().unwrap_or(0);
        let mut bodies = Vec::new();
        for _ in 0..widest {
            // Into the cache first, so that all begin to decode together.
            let prompt = self.prompt(context);
            if self.send(&prompt, 1).await?.is_none() {
                return Ok(());
            }
            bodies.push(prompt);
        }
        for batch in batches {
            let mut times = Vec::new();
            for _ in 0..plan.rounds.max(1) {
                times.push(self.decode(&bodies[..batch as usize], plan.output).await?);
            }
            times.sort_by(|a, b| a.1.total_cmp(&b.1));
            let (context, seconds) = times[times.len() / 2];
            points.push(Point::Decode {
                batch,
                context,
                seconds,
            });
            self.bar.inc(1);
        }
        Ok(())
    }

    /// Mean context and mean time between two tokens while all `prompts` decode side by side.
    async fn decode(&self, prompts: &[Prompt], output: u32) -> anyhow::Result<(f64, f64)> {
        let one = async |prompt: &Prompt| -> anyhow::Result<(f64, f64)> {
            let served = self
                .send(prompt, output)
                .await?
                .context("a prompt was refused the second time")?;
            let ended = self.clock.now();
            let usage = served.reply.usage.context("the server reports no usage")?;
            let tokens = u32::try_from(usage.output)?;
            let gaps = f64::from(tokens.saturating_sub(1).max(1));
            let seconds = ended.since(served.first_token).as_secs_f64() / gaps;
            Ok((
                f64::from(u32::try_from(usage.prompt)?) + gaps / 2.0,
                seconds,
            ))
        };
        let all = join_all(prompts.iter().map(one)).await;
        let (mut context, mut seconds) = (0.0, 0.0);
        let count = f64::from(u32::try_from(all.len())?);
        for result in all {
            let (of_one, time) = result?;
            context += of_one / count;
            seconds += time / count;
        }
        Ok((context, seconds))
    }

    /// A prompt of about this many tokens that nobody has sent before.
    fn prompt(&mut self, tokens: u32) -> Prompt {
        self.sent += 1;
        let mut text = Vec::new();
        push_text(
            &mut text,
            text_seed(self.seed, "calibrate", self.sent),
            u64::from(tokens),
        );
        Prompt(String::from_utf8_lossy(&text).into_owned())
    }

    /// Sends a prompt; `None` if it is longer than the server takes.
    async fn send(&self, prompt: &Prompt, output: u32) -> anyhow::Result<Option<Served>> {
        let body = serde_json::json!({
            "model": self.model,
            "messages": [{"role": "user", "content": prompt.0}],
            "max_tokens": output,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        match self
            .client
            .step(None, Bytes::from(serde_json::to_vec(&body)?), true)
            .await
        {
            Ok(served) => Ok(Some(served)),
            Err(StepError { status: 400, .. }) => Ok(None),
            Err(error) => anyhow::bail!("a request of the calibration failed: {}", error.cause),
        }
    }
}

/// The model of this name, which is asked for even where the server does not list it.
async fn named(client: &Client, id: String) -> Model {
    let listed = client.models().await.unwrap_or_default();
    let found = listed.into_iter().find(|model| model.id == id);
    found.unwrap_or(Model {
        id,
        max_model_len: None,
    })
}

/// A prompt's text.
#[derive(Debug)]
struct Prompt(String);

/// The median time of some first tokens; `cached` says how much was in the cache where the server did not.
fn median_of(times: &[(u32, Option<u64>, f64)], cached: impl Fn(u32) -> u32) -> Option<Point> {
    let mut seconds: Vec<f64> = times.iter().map(|time| time.2).collect();
    seconds.sort_by(f64::total_cmp);
    let (prompt, reported, _) = *times.first()?;
    let reported = reported.and_then(|cached| u32::try_from(cached).ok());
    Some(Point::FirstToken {
        prompt,
        cached: reported.unwrap_or_else(|| cached(prompt)),
        seconds: percentile(&seconds, 0.5)?,
    })
}

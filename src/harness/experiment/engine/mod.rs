//! What serves the model: an engine that runs already, one of our own, the embedded one, or a remote one.
//!
//! [`EngineOptions`] are flags and file; checked, they are a [`Plan`]; started, an [`Engine`], which knows where it
//! serves, what it serves, when it ended by itself, and how to end it so that port and GPU are free for the next.

mod gpu;
mod options;
mod plan;
mod probe;
mod program;
mod tunnel;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::{Value, json};

pub use options::{EngineOptions, Kind};
pub use plan::{LOG, Plan};
pub use tunnel::GAPS;

use crate::harness::child::server::Server;
use crate::harness::child::{Guarded, log_says};
use probe::{Facts, Model};
use tunnel::Tunnel;

/// How long a port may stay taken after its owner ended.
const PORT_RELEASE: Duration = Duration::from_secs(10);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(50);

/// An engine that is ready. One of ours is killed when dropped.
#[derive(Debug)]
pub struct Engine {
    kind: Kind,
    url: String,
    argv: Vec<String>,
    models: Vec<Model>,
    model: String,
    facts: Facts,
    owned: Option<Owned>,
    tunnel: Option<Tunnel>,
    /// The port that an engine of ours gives back.
    port: Option<u16>,
    stop: Duration,
    gpu: Option<gpu::Watch>,
}

/// A process of ours.
#[derive(Debug)]
enum Owned {
    Embedded(Server),
    Process { process: Guarded, log: PathBuf },
}

impl Engine {
    /// Where it serves: `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The model to ask for: the one that was asked for, or the first that it lists.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Ids of all models that it lists, in its order.
    pub fn served(&self) -> Vec<&str> {
        self.models.iter().map(|model| model.id.as_str()).collect()
    }

    /// Longest prompt and output together, in tokens, of the model to ask for, if the engine says so.
    pub fn max_model_len(&self) -> Option<u64> {
        let model = self.models.iter().find(|model| model.id == self.model)?;
        model.max_model_len
    }

    /// Checks that it serves a model of this very name.
    ///
    /// # Errors
    /// With the names of those that it does serve.
    pub fn expect_model(&self, name: &str) -> anyhow::Result<()> {
        ensure!(
            self.served().contains(&name),
            "the engine at {} does not serve {name:?}; it serves {}: give that name, or start it with this one \
             (--served-model)",
            self.url,
            self.served().join(", ")
        );
        Ok(())
    }

    /// Interruptions of the tunnel that are over or going on.
    pub fn gaps(&self) -> usize {
        self.tunnel.as_ref().map_or(0, Tunnel::gaps)
    }

    /// Waits until an engine of ours ends by itself, or its tunnel is given up; says why. For ever with an engine that
    /// is not ours. May be dropped and called again.
    pub async fn ended(&mut self) -> String {
        let Self { owned, tunnel, .. } = self;
        let process = async {
            match owned {
                Some(owned) => owned.ended().await,
                None => std::future::pending().await,
            }
        };
        let tunnel = async {
            match tunnel {
                Some(tunnel) => tunnel.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = process => why,
            why = tunnel => why,
        }
    }

    /// Ends an engine of ours and its tunnel, then waits until its port is free and its GPU memory is back. An engine
    /// that ignores the request is killed, with all that it started.
    ///
    /// # Errors
    /// When something cannot be ended, or still holds the port or the GPU.
    pub async fn stop(self) -> anyhow::Result<()> {
        match self.owned {
            Some(Owned::Embedded(server)) => server.stop().await?,
            Some(Owned::Process { mut process, .. }) => {
                let killed = process.stop(self.stop).await?.is_none();
                if killed {
                    tracing::warn!(after = ?self.stop, "the engine did not end when asked and was killed");
                }
            }
            None => {}
        }
        if let Some(tunnel) = self.tunnel {
            tunnel.close().await?;
        }
        if let Some(port) = self.port {
            await_free(port).await?;
        }
        match self.gpu {
            Some(gpu) => gpu.settle(gpu::RELEASE).await,
            None => Ok(()),
        }
    }

    /// How it is made and what it says of itself, for the manifest.
    pub fn describe(&self) -> Value {
        json!({
            "kind": self.kind.name(),
            "url": self.url,
            "argv": self.argv,
            "served_model": self.model,
            "served_models": self.served(),
            "max_model_len": self.max_model_len(),
            "version": self.facts.version,
            "cache_config": self.facts.cache_config,
            "tunnel": self.tunnel.as_ref().map(Tunnel::describe),
        })
    }

    fn log_says(&self) -> String {
        match &self.owned {
            Some(Owned::Process { log, .. }) => log_says(log),
            Some(Owned::Embedded(_)) | None => String::new(),
        }
    }
}

async fn await_free(port: u16) -> anyhow::Result<()> {
    let freed = async {
        while plan::bind(port).is_err() {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(PORT_RELEASE, freed).await.is_err() {
        bail!(
            "port {port} is still taken {PORT_RELEASE:?} after its engine ended: something that the engine started \
             outlives it; see who with `ss -ltnp sport = :{port}`"
        );
    }
    Ok(())
}

//! The model config of the reference's launch scripts, byte for byte, and the same with a gate for every endpoint.
//! Pure.

use std::fmt::{self, Write as _};

/// The experts' models, in the order of `expert-1` to `expert-3`.
pub const EXPERTS: [&str; 3] = [
    "openai/gpt-oss-20b",
    "Qwen/Qwen3-32B-FP8",
    "Qwen/Qwen3-Next-80B-A3B-Instruct-FP8",
];
/// Where the reference's experts listen, in the same order.
const EXPERT_PORTS: [&[u16]; 3] = [&[1910, 1911, 1912, 1913], &[1904, 1905], &[1920, 1921]];
/// The reference's endpoints are tunnels.
const LOCAL: &str = "127.0.0.1";

/// An address of a model's server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// The address of a server `http://HOST:PORT`, which is all that the config can say of one.
    ///
    /// # Errors
    /// When the URL has another scheme, a path, or no host.
    pub fn of_url(text: &str) -> anyhow::Result<Self> {
        let odd = || {
            anyhow::anyhow!(
                "{text} is no address that run_oss.py can be given: write http://HOST:PORT"
            )
        };
        let url: http::Uri = text.parse().map_err(|_| odd())?;
        let plain = url.scheme_str() == Some("http") && matches!(url.path(), "" | "/");
        let host = url.host().filter(|_| plain && url.query().is_none());
        Ok(Self {
            host: host.ok_or_else(odd)?.to_owned(),
            port: url.port_u16().unwrap_or(80),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = quoted(&self.host);
        write!(f, r#"{{"ip_addr": {host}, "port": "{}"}}"#, self.port)
    }
}

/// Which model is served where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// The agent's model, as the driver calls it.
    pub agent: String,
    /// Where it is served.
    pub agent_at: Endpoint,
    /// Where each of [`EXPERTS`] is.
    pub experts_at: [Vec<Endpoint>; 3],
    /// Where this config will be, as it says itself.
    pub path: String,
}

impl ModelConfig {
    /// The reference's: an agent on a port of this machine, experts behind its tunnels.
    pub fn reference(agent: &str, port: u16, path: &str) -> Self {
        let local = |port: &u16| Endpoint {
            host: LOCAL.to_owned(),
            port: *port,
        };
        Self {
            agent: agent.to_owned(),
            agent_at: local(&port),
            experts_at: EXPERT_PORTS.map(|ports| ports.iter().map(local).collect()),
            path: path.to_owned(),
        }
    }

    /// Every model behind one gate.
    pub fn behind(gate: &Endpoint, agent: &str, path: &str) -> Self {
        Self {
            agent: agent.to_owned(),
            agent_at: gate.clone(),
            experts_at: [(); 3].map(|()| vec![gate.clone()]),
            path: path.to_owned(),
        }
    }

    /// The file's name for a policy.
    pub fn file_name(policy: &str) -> String {
        format!("model_config_5090_{policy}.json")
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = format!("{{\n  {}: [{}],\n\n", quoted(&self.agent), self.agent_at);
        for (model, endpoints) in EXPERTS.iter().zip(&self.experts_at) {
            let lines: Vec<String> = endpoints.iter().map(|at| format!("    {at}")).collect();
            // Writing to a string cannot fail.
            let _written = writeln!(text, "  {}: [\n{}\n  ],", quoted(model), lines.join(",\n"));
        }
        let names = (1..).zip(EXPERTS);
        let names: Vec<String> = names
            .map(|(number, model)| format!(r#"    "expert-{number}": {}"#, quoted(model)))
            .collect();
        let path = quoted(&self.path);
        let _written = write!(
            text,
            "\n  \"oss_expert_mapping\": {{\n{}\n  }},\n\n  \"vllm_model_config_path\": {path}\n}}\n",
            names.join(",\n")
        );
        text
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's configs of six runs, by policy, concurrency, time of the launch and the agent's port.
    const RUNS: [(&str, &str, u16, &str); 6] = [
        (
            "thunderreact",
            "c32_20260104_052733",
            8000,
            include_str!(
                "../../../../tests/fixtures/reference/model_config/thunderreact_c32_20260104_052733.json"
            ),
        ),
        (
            "thunderreact",
            "c64_20260104_070945",
            8000,
            include_str!(
                "../../../../tests/fixtures/reference/model_config/thunderreact_c64_20260104_070945.json"
            ),
        ),
        (
            "thunderreact",
            "c128_20260104_084052",
            8000,
            include_str!(
                "../../../../tests/fixtures/reference/model_config/thunderreact_c128_20260104_084052.json"
            ),
        ),
        (
            "continuum",
            "c32_20260104_191004",
            1900,
            include_str!(
                "../../../../tests/fixtures/reference/model_config/continuum_c32_20260104_191004.json"
            ),
        ),
        (
            "continuum",
            "c64_20260104_205216",
            1900,
            include_str!(
                "../../../../tests/fixtures/reference/model_config/continuum_c64_20260104_205216.json"
            ),
        ),
        (
            "continuum",
            "c128_20260104_223636",
            1900,
            include_str!(
                "../../../../tests/fixtures/reference/model_config/continuum_c128_20260104_223636.json"
            ),
        ),
    ];

    #[test]
    fn the_references_configs_are_written_byte_for_byte() {
        for (policy, launch, port, expected) in RUNS {
            let file = ModelConfig::file_name(policy);
            let path = format!("/workspace/ToolOrchestra/outputs/{policy}_{launch}/{file}");
            let agent = "/workspace/ckpt/nvidia/Nemotron-Orchestrator-8B";
            let text = ModelConfig::reference(agent, port, &path).text();
            assert_eq!(text, expected, "{policy} {launch}");
        }
    }

    #[test]
    fn behind_a_gate_every_model_has_its_address_and_names_are_escaped() {
        let gate = Endpoint::of_url("http://gate.local:1900/").unwrap();
        let text = ModelConfig::behind(&gate, "a \"quoted\" folder", "run/mc.json").text();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let at = serde_json::json!([{"ip_addr": "gate.local", "port": "1900"}]);
        for model in EXPERTS.iter().chain(&["a \"quoted\" folder"]) {
            assert_eq!(read[model], at, "{model}");
        }
        assert_eq!(read["oss_expert_mapping"]["expert-3"], EXPERTS[2]);
        assert_eq!(read["vllm_model_config_path"], "run/mc.json");
    }

    #[test]
    fn a_gate_that_the_config_cannot_express_is_refused() {
        for url in [
            "https://gate:1",
            "gate:1900",
            "http://gate/v1",
            "http://",
            "http://gate?x",
        ] {
            let error = Endpoint::of_url(url).unwrap_err().to_string();
            assert!(error.contains("http://HOST:PORT"), "{url}: {error}");
        }
        assert_eq!(Endpoint::of_url("http://gate").unwrap().port, 80);
    }
}

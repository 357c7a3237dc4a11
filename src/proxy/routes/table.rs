//! The routes of a running gate.

use std::sync::Arc;

use bytes::Bytes;

use super::balance::Balance;
use super::config::{EndpointUrl, RouteConfig, StandIn, Target};
use super::rewrite::rewrite;
use super::tls::Tls;
use super::{Pattern, Role};
use crate::proxy::backend::Patience;
use crate::proxy::pool::{Pool, PoolConfig};
use crate::proxy::upstream::Upstream;

/// Every route, the one that counts first.
#[derive(Debug, Default)]
pub struct Routes(Vec<Arc<Route>>);

/// A route that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("routes.{route:?}: {problem}")]
pub struct RouteError {
    route: String,
    problem: String,
}

impl Routes {
    /// The routes of a configuration, in the order in which they count.
    ///
    /// # Errors
    /// A `ca_file` that cannot be read, or a host that no certificate can name.
    pub fn new(configs: &[RouteConfig], patience: Patience) -> Result<Self, RouteError> {
        let mut configs: Vec<&RouteConfig> = configs.iter().collect();
        configs.sort_by(|a, b| a.pattern.precedence().cmp(&b.pattern.precedence()));
        let routes = configs.into_iter().enumerate();
        routes
            .map(|(index, config)| Route::new(index, config, patience).map(Arc::new))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The route of requests for `model`, if there is one. Takes time in proportion to the number of routes.
    pub fn find(&self, model: &str) -> Option<&Arc<Route>> {
        self.0.iter().find(|route| route.pattern.matches(model))
    }

    /// The models that a route names exactly.
    pub fn models(&self) -> Vec<&str> {
        let exact = self.0.iter().filter(|route| route.pattern.is_exact());
        exact.map(|route| route.name()).collect()
    }

    /// Their names, by [`Route::index`].
    pub fn names(&self) -> Vec<String> {
        let names = self.0.iter().map(|route| route.name().to_owned());
        names.collect()
    }
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// Its place among all, as metrics count them.
    pub index: usize,
    /// Whom it is for.
    pub pattern: Pattern,
    /// Whose calls these are.
    pub role: Role,
    /// Where they go.
    pub way: Way,
    model: Option<String>,
    drop_fields: Vec<String>,
}

/// Where a route's requests go.
#[derive(Debug)]
pub enum Way {
    /// To one of these servers.
    Endpoints(Servers),
    /// The gate answers.
    StandIn(StandIn),
    /// To the backends, through the policy.
    Scheduled,
}

/// The servers of one route.
#[derive(Debug)]
pub struct Servers {
    /// At least one.
    pub endpoints: Box<[Endpoint]>,
    /// Whose turn it is among them.
    pub balance: Balance,
    /// `Authorization` in place of the client's.
    pub bearer: Option<http::HeaderValue>,
}

/// One server of a route.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub url: EndpointUrl,
    /// Connections to it.
    pub upstream: Arc<Upstream>,
}

impl Route {
    fn new(index: usize, config: &RouteConfig, patience: Patience) -> Result<Self, RouteError> {
        let failed = |problem| RouteError {
            route: config.pattern.to_string(),
            problem,
        };
        let way = match &config.target {
            Target::Scheduled => Way::Scheduled,
            Target::StandIn(stand_in) => Way::StandIn(stand_in.clone()),
            Target::Endpoints(endpoints) => {
                let ca_file = endpoints.ca_file.as_deref();
                let tls = |url: &EndpointUrl| {
                    let tls = url.tls.then(|| Tls::new(&url.host, ca_file)).transpose();
                    tls.map_err(|error| match ca_file {
                        Some(path) => failed(format!(
                            "ca_file {}: {error}; write the path of a PEM file",
                            path.display()
                        )),
                        None => failed(format!("urls: {url}: {error}")),
                    })
                };
                let servers = endpoints
                    .urls
                    .iter()
                    .map(|url| Ok(Endpoint::new(url, &config.pattern, tls(url)?, patience)));
                Way::Endpoints(Servers {
                    endpoints: servers.collect::<Result<_, _>>()?,
                    balance: Balance::new(endpoints.urls.len()),
                    bearer: endpoints.key.as_ref().map(|key| key.bearer().clone()),
                })
            }
        };
        Ok(Self {
            index,
            pattern: config.pattern.clone(),
            role: config.role,
            way,
            model: config.model.clone(),
            drop_fields: config.drop_fields.clone(),
        })
    }

    /// Its name in records, metrics and errors: the pattern as it is written.
    pub fn name(&self) -> &str {
        self.pattern.as_str()
    }

    /// The body as it is sent on.
    pub fn rewritten(&self, body: &Bytes) -> Bytes {
        if self.model.is_none() && self.drop_fields.is_empty() {
            return body.clone();
        }
        rewrite(body, self.model.as_deref(), &self.drop_fields)
    }
}

impl Endpoint {
    fn new(url: &EndpointUrl, route: &Pattern, tls: Option<Tls>, patience: Patience) -> Self {
        let config = PoolConfig {
            address: url.address(),
            idle_timeout: patience.idle,
            connect_timeout: patience.connect,
            tls,
        };
        let upstream = Upstream {
            title: format!("endpoint {url} of route {:?}", route.as_str()),
            host_header: url.host_header.clone(),
            pool: Pool::new(config),
        };
        Self {
            url: url.clone(),
            upstream: Arc::new(upstream),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::proxy::routes::Endpoints;

    #[test]
    fn a_route_whose_authorities_cannot_be_read_says_so_before_anything_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        let ca_of = |ca_file: PathBuf| {
            let config = RouteConfig {
                pattern: Pattern::new("gpt-5".to_owned()),
                role: Role::Expert,
                model: None,
                drop_fields: Vec::new(),
                target: Target::Endpoints(Endpoints {
                    urls: vec!["https://localhost/v1".parse().unwrap()],
                    key: None,
                    ca_file: Some(ca_file),
                }),
            };
            let patience = Patience {
                connect: Duration::ZERO,
                idle: Duration::ZERO,
            };
            Routes::new(&[config], patience).unwrap_err().to_string()
        };
        for (file, problem) in [
            (folder.path().join("none.pem"), "os error 2"),
            (empty, "no certificate in it"),
        ] {
            let error = ca_of(file);
            assert!(error.starts_with("routes.\"gpt-5\": ca_file "), "{error}");
            assert!(
                error.contains(problem) && error.contains("PEM file"),
                "{error}"
            );
        }
    }
}

//! TLS to endpoints whose URL begins with `https`.
//!
//! The public roots are built in, so that a bare container has them; a route's `ca_file` adds others.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, Error as TlsError, RootCertStore};

/// How the connections to one endpoint are encrypted.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    host: ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.host).finish()
    }
}

impl Tls {
    /// For the server that can show a certificate of `host`, a name or an address, which one of the public
    /// authorities or one in `ca_file` has signed.
    ///
    /// # Errors
    /// A host that no certificate can name, or a file that holds no certificate; the message says which.
    pub fn new(host: &str, ca_file: Option<&Path>) -> io::Result<Self> {
        // An IPv6 address stands in brackets in a URL, and without them in a certificate.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
        let provider = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots(ca_file)?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            connector: Arc::new(config).into(),
            host: name,
        })
    }

    /// Shakes hands over a fresh connection.
    ///
    /// # Errors
    /// What is wrong with the server's certificate, or what broke the connection.
    pub async fn encrypt(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let connecting = self.connector.connect(self.host.clone(), stream);
        connecting.await.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            match inner {
                Some(TlsError::InvalidCertificate(_)) => io::Error::other(format!(
                    "{error}; a certificate of your own goes into the route's ca_file"
                )),
                _ => error,
            }
        })
    }
}

fn roots(ca_file: Option<&Path>) -> io::Result<RootCertStore> {
    let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    let Some(path) = ca_file else {
        return Ok(roots);
    };
    let before = roots.len();
    for certificate in CertificateDer::pem_file_iter(path).map_err(io::Error::other)? {
        let certificate = certificate.map_err(io::Error::other)?;
        roots.add(certificate).map_err(io::Error::other)?;
    }
    if roots.len() == before {
        return Err(io::Error::other("there is no certificate in it"));
    }
    Ok(roots)
}

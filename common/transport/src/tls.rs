//! Builds the two TLS configurations of an identity: TLS 1.3 only, both sides verified against the run's CA.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, version};

use crate::error::TransportError;
use crate::identity::Identity;

/// The application protocol; peers of another protocol version are refused in the handshake.
const ALPN: &[u8] = b"windlass/10";

/// The cryptography in use. AES-128 comes first: it protects a run's traffic as well and costs less than AES-256.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// The accepting side. Sessions are never resumed: a connection lasts for the run, and each is verified in full.
pub(crate) fn server(identity: &Identity) -> Result<QuicServerConfig, TransportError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider())
        .build()
        .map_err(TransportError::tls)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TransportError::tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate()], identity.key())
        .map_err(TransportError::tls)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(TransportError::tls)
}

/// The connecting side.
pub(crate) fn client(identity: &Identity) -> Result<QuicClientConfig, TransportError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(identity)?, provider())
        .build()
        .map_err(TransportError::tls)?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TransportError::tls)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate()], identity.key())
        .map_err(TransportError::tls)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(TransportError::tls)
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, TransportError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority()).map_err(TransportError::tls)?;
    Ok(Arc::new(roots))
}

//! A provider behind TLS whose authority only the user's company knows.

use crate::{
    reader::Reader,
    stack::{Setup, Stack, run},
};
use contract::{
    event::TurnError,
    session::{CreateSession, ModelConfig, Provider},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{net::SocketAddr, sync::Arc};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, rustls};

/// An authority's certificate in PEM, and what a server of the name `localhost` needs.
fn authority() -> (String, rustls::ServerConfig) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &authority).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    (authority.pem(), config)
}

/// Speaks TLS before `to`; returns its port.
async fn before(to: SocketAddr, config: rustls::ServerConfig) -> u16 {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((inner, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust us breaks off: nothing to do here.
                let Ok(mut inner) = acceptor.accept(inner).await else {
                    return;
                };
                let mut outer = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
            });
        }
    });
    port
}

async fn turn(stack: &Stack, endpoint: &str) -> Reader {
    let id = stack.id();
    let body = CreateSession {
        session_id: id.clone(),
        prompt: "SCENARIO:hello".into(),
        model_config: Some(ModelConfig {
            provider: Provider::Local,
            model: "scripted-1".into(),
            api_key: Some("sk-own".into()),
            api_endpoint: Some(endpoint.to_owned()),
            temperature: None,
            max_tokens: None,
            enabled_tools: None,
            model_version: None,
        }),
        system_prompt: None,
    };
    stack.client.create_session(&body).await.unwrap();
    let mut reader = Reader::default();
    stack.read_turn(&mut reader, &id).await;
    reader
}

/// With the authority's certificate calls succeed; without it, or with another's, they do not, and the
/// reader is told. A bundle that is no certificate does not keep the sidecar from starting.
#[test]
fn an_authority_of_ones_own_is_trusted_where_it_is_named_and_only_there() {
    run(async {
        let (trusted, config) = authority();
        let (other, _) = authority();
        let folder = tempfile::tempdir().unwrap();
        for (bundle, works) in [
            (trusted.as_str(), true),
            (other.as_str(), false),
            ("no certificate", false),
        ] {
            let file = folder.path().join("ca.crt");
            std::fs::write(&file, bundle).unwrap();
            let stack = Stack::start(Setup::default().env("EXTRA_CA_FILE", file.display())).await;
            let port = before(stack.model.addr, config.clone()).await;
            let endpoint = format!("https://localhost:{port}/v1");
            let reader = turn(&stack, &endpoint).await;
            if works {
                assert_eq!(
                    reader.complete().final_message,
                    "Hello from the scripted model."
                );
            } else {
                let error = reader.failed(TurnError::ProviderUnreachable);
                assert!(
                    error.error.contains("spec.network.extraCABundle"),
                    "{error:?}"
                );
            }
            // Plain endpoints are as before.
            stack.still_works().await;
        }
    });
}

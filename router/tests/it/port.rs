//! One port for everything: gRPC and plain HTTP, with TLS or without, and what silent connections do to a shutdown.
//!
//! `tls/` holds a certificate of `localhost` and 127.0.0.1 that signs itself, and its key: for these tests only.

use crate::support::{House, complete, guarded, remote};
use reqwest::StatusCode;
use router::settings::TlsFiles;
use sluice_proto::client::Client;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Far above what a shutdown takes and far below the grace: it only ends a test that would hang.
const HANGS: Duration = Duration::from_secs(120);

fn tls(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/tls").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_metrics_need_the_role_and_health_needs_none() {
    let (house, _folder) = guarded().await;
    let http = reqwest::Client::new();
    let get = async |path: &str, key: &str| {
        let mut call = http.get(format!("{}{path}", house.app.url()));
        if !key.is_empty() {
            call = call.bearer_auth(key);
        }
        call.send().await.unwrap().status()
    };
    let (ok, unknown, denied) = (StatusCode::OK, StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN);
    // Path; without a key; a wrong one; serve; usage-own; usage-all; admin.
    let table = [
        ("/healthz", [ok, ok, ok, ok, ok, ok]),
        ("/", [ok, ok, ok, ok, ok, ok]),
        ("/metrics", [unknown, unknown, denied, denied, ok, ok]),
        ("/api/summary", [unknown, unknown, denied, ok, ok, ok]),
        ("/api/entries", [unknown, unknown, denied, ok, ok, ok]),
        ("/no/such/page", [StatusCode::NOT_FOUND; 6]),
    ];
    for (path, expected) in table {
        for (key, status) in ["", "wrong", "serve", "own", "all", "admin"].into_iter().zip(expected) {
            assert_eq!(get(path, key).await, status, "{path} with `{key}`");
        }
    }
    // The same path asked for in gRPC is answered in gRPC.
    let call = http.post(format!("{}/no.Service/Method", house.app.url())).header("content-type", "application/grpc");
    let answer = call.send().await.unwrap();
    assert_eq!((answer.status(), answer.headers()["grpc-status"].to_str().unwrap()), (ok, "12"));
    house.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_are_served_with_tls() {
    let house = House::with(|settings| {
        settings.tls = Some(TlsFiles { certificate: tls("certificate.pem"), key: tls("key.pem") });
    })
    .await;
    let pem = std::fs::read_to_string(tls("certificate.pem")).unwrap();
    assert!(house.app.url().starts_with("https://"));
    complete(&mut house.client.clone(), remote("Over TLS.")).await.unwrap();
    let root = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
    let http = reqwest::Client::builder().add_root_certificate(root).http1_only().build().unwrap();
    let answer = http.get(format!("{}/healthz", house.app.url())).send().await.unwrap();
    assert_eq!((answer.version(), answer.text().await.unwrap().as_str()), (reqwest::Version::HTTP_11, "ok\n"));
    let plain = format!("http://{}", house.app.address());
    assert!(reqwest::get(format!("{plain}/healthz")).await.is_err(), "no clear text beside TLS");
    let stranger = Client::connect(&house.app.url(), None, None).await;
    assert!(stranger.is_err(), "the web's roots don't know this certificate");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_delay_a_shutdown() {
    for secure in [false, true] {
        let house = House::with(|settings| {
            settings.shutdown_grace = Duration::from_secs(600);
            if secure {
                settings.tls = Some(TlsFiles { certificate: tls("certificate.pem"), key: tls("key.pem") });
            }
        })
        .await;
        let mut silent = TcpStream::connect(house.app.address()).await.unwrap();
        // The listener takes connections in order: after this one the silent one was taken.
        complete(&mut house.client.clone(), remote("Is anybody there?")).await.unwrap();
        drop(house.client);
        tokio::time::timeout(HANGS, house.app.shutdown()).await.unwrap();
        let mut rest = Vec::new();
        let _closed_or_reset = tokio::time::timeout(HANGS, silent.read_to_end(&mut rest)).await.unwrap();
    }
}

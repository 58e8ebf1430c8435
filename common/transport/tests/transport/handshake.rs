//! Who may connect to whom, what is said to those who may not, and that they disturb nobody else.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use windlass_common::ids::{ServerId, WorkerId};
use windlass_transport::{
    ConnectionLost, Endpoint, Limits, Priority, Role, RunAuthority, TransportError, bare, resolve,
};

use crate::support::{LONG, Run, SERVER, WORKER, accept_all, bounded, loopback, pair, standing_runtime};

#[tokio::test]
async fn both_sides_know_each_other_by_certificate() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        assert_eq!(pair.accepted.peer(), WORKER);
        assert_eq!(pair.opened.peer(), SERVER);
        assert_eq!(pair.opened.remote_address(), pair.server.local_address().unwrap());
        assert!(pair.accepted.remote_address().is_ipv4(), "an IPv4 peer is shown as one");
        assert!(!pair.opened.is_closed());
        assert_eq!((pair.server.role(), pair.client.role()), (SERVER, WORKER));
    })
    .await;
}

#[tokio::test]
async fn a_server_may_connect_to_a_server_and_from_its_own_port() {
    bounded(async {
        let authority = RunAuthority::new("run").unwrap();
        let limits = Limits::default();
        let bind = |number| {
            let identity = authority.issue(Role::Server(ServerId(number))).unwrap();
            Endpoint::bind(loopback(), &identity, &limits).unwrap()
        };
        let (one, two) = (bind(1), bind(2));
        let mut accepted = accept_all(&two);
        let address = two.local_address().unwrap();
        let opened = one.connect(address, Role::Server(ServerId(2)), LONG).await.unwrap();
        let accepted = accepted.recv().await.unwrap().unwrap();
        assert_eq!(accepted.peer(), Role::Server(ServerId(1)));
        assert_eq!(accepted.remote_address(), one.local_address().unwrap());
        drop(opened);
    })
    .await;
}

#[tokio::test]
async fn a_worker_of_another_run_is_refused_and_disturbs_nobody() {
    bounded(async {
        let (run, other) = (Run::new(), Run::new());
        let (server, address) = run.listen();
        let mut accepted = accept_all(&server);
        let error = other.client().connect(address, SERVER, LONG).await.unwrap_err();
        assert!(matches!(error, TransportError::Refused { .. }), "{error:?}");
        let text = error.to_string();
        let expected =
            format!("server-0 at {address}: its certificate was issued by another run's authority");
        assert!(text.starts_with(&expected), "{text}");
        let text = accepted.recv().await.unwrap().unwrap_err().to_string();
        assert!(text.contains("the handshake with 127.0.0.1:"), "{text}");

        run.client().connect(address, SERVER, LONG).await.unwrap();
        assert_eq!(accepted.recv().await.unwrap().unwrap().peer(), WORKER);
    })
    .await;
}

#[tokio::test]
async fn another_server_than_expected_is_refused_at_once() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        let _accepted = accept_all(&server);
        let text =
            run.client().connect(address, Role::Server(ServerId(1)), LONG).await.unwrap_err().to_string();
        assert!(
            text.starts_with(&format!("server-1 at {address}: its certificate is not one for this peer")),
            "{text}"
        );
        assert!(text.contains("server-0.windlass") && text.contains("server-1.windlass"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_worker_cannot_pose_as_one_who_accepts() {
    bounded(async {
        let run = Run::new();
        let posing = Endpoint::bind(loopback(), &run.worker, &run.limits).unwrap();
        let _accepted = accept_all(&posing);
        let address = posing.local_address().unwrap();
        let error = run.client().connect(address, WORKER, LONG).await.unwrap_err();
        assert!(matches!(error, TransportError::Refused { .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn garbage_and_plaintext_are_ignored() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        let mut accepted = accept_all(&server);
        let socket = UdpSocket::bind(loopback()).unwrap();
        // A long header of QUIC version 1 with a random rest looks most like the real thing.
        let mut initial = vec![0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x9e];
        initial.extend((0..1200).map(|i: u32| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]));
        for datagram in
            [&b""[..], b"x", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 1400], &[0x40; 1400], &[0; 65_000], &initial]
        {
            socket.send_to(datagram, address).unwrap();
        }
        let opened = run.client().connect(address, SERVER, LONG).await.unwrap();
        let connection = loop {
            // The look-alike may show up as a failed handshake, and as nothing else.
            if let Ok(connection) = accepted.recv().await.unwrap() {
                break connection;
            }
        };
        assert_eq!(connection.peer(), WORKER);
        drop(opened);
    })
    .await;
}

#[tokio::test]
async fn connecting_to_nobody_fails_at_the_deadline_and_says_where() {
    bounded(async {
        let run = Run::new();
        let silent = UdpSocket::bind(loopback()).unwrap();
        let address = silent.local_addr().unwrap();
        let error = run.client().connect(address, SERVER, Duration::from_millis(1500)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("could not reach server-0 at {address} within 1.5 s: nothing answered")
        );
    })
    .await;
}

#[tokio::test]
async fn connecting_before_the_server_is_up_succeeds_once_it_is() {
    bounded(async {
        let run = Run::new();
        let placeholder = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
        let address = placeholder.local_addr().unwrap();
        let client = run.client();
        let connecting = tokio::spawn(async move { client.connect(address, SERVER, LONG).await });
        // The client has certainly begun when something has arrived where nobody answers.
        placeholder.recv_from(&mut [0; 2000]).await.unwrap();
        drop(placeholder);
        let server = Endpoint::bind(address, &run.server, &run.limits).unwrap();
        let mut accepted = accept_all(&server);
        assert_eq!(connecting.await.unwrap().unwrap().peer(), SERVER);
        assert_eq!(accepted.recv().await.unwrap().unwrap().peer(), WORKER);
    })
    .await;
}

#[tokio::test]
async fn a_full_server_refuses_until_it_has_room() {
    bounded(async {
        let mut run = Run::new();
        run.limits.connections = 1;
        let (server, address) = run.listen();
        let mut accepted = accept_all(&server);
        let first = run.client();
        let connection = first.connect(address, SERVER, LONG).await.unwrap();
        let second = run.client();
        let error = second.connect(address, SERVER, Duration::from_millis(300)).await.unwrap_err();
        let expected =
            format!("could not reach server-0 at {address} within 0.3 s: it refuses connections for now");
        assert_eq!(error.to_string(), expected);

        connection.close(7, "making room");
        let lost = accepted.recv().await.unwrap().unwrap().closed().await;
        assert_eq!(lost.to_string(), "the peer closed the connection: making room (code 7)");
        second.connect(address, SERVER, LONG).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_last_free_places_are_given_after_a_proof_of_address() {
    bounded(async {
        let mut run = Run::new();
        run.limits.connections = 3;
        let (server, address) = run.listen();
        let mut accepted = accept_all(&server);
        let mut kept = Vec::new();
        for _ in 0..3 {
            kept.push(run.client().connect(address, SERVER, LONG).await.unwrap());
            kept.push(accepted.recv().await.unwrap().unwrap());
        }
        let error = run.client().connect(address, SERVER, Duration::from_millis(300)).await.unwrap_err();
        assert!(error.to_string().ends_with("it refuses connections for now"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_is_let_in_and_sent_away_at_once_learns_both() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        for _ in 0..20 {
            let client = run.client();
            let (_, opened) = tokio::join!(
                async {
                    server.accept().await.unwrap().finish().await.unwrap().close(4, "not in this plan\n")
                },
                client.connect(address, SERVER, LONG),
            );
            let lost = opened.unwrap().closed().await;
            assert_eq!(lost.to_string(), "the peer closed the connection: not in this plan  (code 4)");
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let run = Run::new();
    let (_server, address) = run.listen();
    let text = Endpoint::bind(address, &run.server, &run.limits).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "could not listen on {address}: another process has this port; choose another or end that process"
        )
    );
    let foreign: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let text = Endpoint::bind(foreign, &run.server, &run.limits).unwrap_err().to_string();
    assert_eq!(text, "could not listen on 192.0.2.1:0: this machine has no such address");
}

#[test]
fn an_endpoint_outside_a_runtime_is_an_error() {
    let run = Run::new();
    let error = Endpoint::bind(loopback(), &run.server, &run.limits).unwrap_err();
    assert_eq!(error.to_string(), "an endpoint must be made inside a tokio runtime");
}

#[tokio::test]
async fn contradicting_limits_are_refused_when_the_endpoint_is_made() {
    let run = Run::with(Limits { connections: 1000, ..Limits::default() });
    let text = Endpoint::bind(loopback(), &run.server, &run.limits).unwrap_err().to_string();
    assert!(
        text.starts_with("1000 connections with windows of 128 MiB each could hold 128000 MiB"),
        "{text}"
    );
}

#[tokio::test]
async fn an_unfinished_handshake_keeps_nobody_waiting() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        let slow = run.client();
        let slow = tokio::spawn(async move { slow.connect(address, SERVER, LONG).await });
        // This one is left lying while another is served.
        let first = server.accept().await.unwrap();
        let mut accepted = accept_all(&server);
        let client = run.client();
        let _opened = client.connect(address, SERVER, LONG).await.unwrap();
        assert_eq!(accepted.recv().await.unwrap().unwrap().peer(), WORKER);
        drop(first);
        slow.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_falls_silent_in_its_handshake_is_given_up_alone() {
    bounded(async {
        let run = Run::with(Limits { handshake: Duration::from_millis(500), ..Limits::default() });
        let (server, address) = run.listen();
        let mut accepted = accept_all(&server);
        // The first packet of a real handshake, replayed from a socket that never says another word.
        let catcher = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
        let catch_address = catcher.local_addr().unwrap();
        let client = run.client();
        let connecting = tokio::spawn(async move { client.connect(catch_address, SERVER, LONG).await });
        let mut packet = [0; 2000];
        let (length, _) = catcher.recv_from(&mut packet).await.unwrap();
        connecting.abort();
        catcher.send_to(&packet[..length], address).await.unwrap();
        let mut reply = [0; 2000];
        catcher.recv_from(&mut reply).await.unwrap();

        // The server has answered it, and is now waiting for it; a proper client gets through meanwhile.
        let client = run.client();
        let _opened = client.connect(address, SERVER, LONG).await.unwrap();
        let (mut served, mut given_up) = (false, None);
        while given_up.is_none() {
            match accepted.recv().await.unwrap() {
                Ok(connection) => served = connection.peer() == WORKER,
                Err(error) => given_up = Some(error.to_string()),
            }
        }
        assert!(served, "the proper client was kept waiting by the silent one");
        let expected = format!("the handshake with {catch_address} failed: it was not finished within 0.5 s");
        assert_eq!(given_up.unwrap(), expected);
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_speaks_another_protocol_is_refused_on_both_sides() {
    use bare::quinn;
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        let mut accepted = accept_all(&server);
        // Bare quinn with the right certificates connects; without ours it does not.
        let plain = bare::endpoint(loopback(), &run.worker, &run.limits).unwrap();
        let connection = plain.connect(address, "server-0.windlass").unwrap().await.unwrap();
        assert_eq!(accepted.recv().await.unwrap().unwrap().peer(), WORKER);
        drop(connection);

        let roots = std::sync::Arc::new(quinn::rustls::RootCertStore::empty());
        let provider = std::sync::Arc::new(quinn::rustls::crypto::aws_lc_rs::default_provider());
        let tls = quinn::rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&quinn::rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let config = quinn::ClientConfig::new(std::sync::Arc::new(crypto));
        let error = plain.connect_with(config, address, "server-0.windlass").unwrap().await.unwrap_err();
        assert!(error.to_string().contains("error 120"), "{error}");
        let text = accepted.recv().await.unwrap().unwrap_err().to_string();
        assert!(text.contains("the other side speaks another protocol version"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn shutting_down_tells_the_peers_and_ends_every_wait() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        let address = pair.server.local_address().unwrap();
        let accepting = tokio::spawn({
            let server = pair.server.clone();
            async move { server.accept().await.is_none() }
        });
        pair.server.shutdown(Duration::from_secs(10)).await;
        assert!(accepting.await.unwrap());
        let lost = pair.opened.closed().await;
        let reason = "the process is shutting down".to_owned();
        assert_eq!(lost, ConnectionLost::ClosedByPeer { code: 0, reason });
        assert!(pair.opened.is_closed());
        assert_eq!(pair.opened.open_stream(Priority::Normal).await.unwrap_err(), lost);
        assert_eq!(pair.accepted.closed().await, ConnectionLost::ClosedHere);
        let error = pair.server.connect(address, SERVER, LONG).await.unwrap_err();
        assert!(matches!(error, TransportError::Closed), "{error:?}");
    })
    .await;
}

#[test]
fn a_peer_that_vanishes_is_noticed_after_the_idle_timeout() {
    let run = Run::with(Limits { idle: Duration::from_millis(300), ..Limits::default() });
    let (here, there) = (standing_runtime(), standing_runtime());
    let (server, address) = here.block_on(async { run.listen() });
    let client = there.block_on(async { run.client() });
    // The client's runtime stands still as soon as both have the connection: nothing is said, nothing answered.
    let (accepted, until_accepted) = tokio::sync::oneshot::channel::<()>();
    let peer = std::thread::spawn(move || {
        let connection = there.block_on(bounded(async {
            let connection = client.connect(address, SERVER, LONG).await.unwrap();
            until_accepted.await.unwrap();
            connection
        }));
        (there, client, connection)
    });
    let lost = here.block_on(bounded(async {
        let connection = server.accept().await.unwrap().finish().await.unwrap();
        accepted.send(()).unwrap();
        connection.closed().await
    }));
    assert_eq!(lost, ConnectionLost::Silent);
    drop(peer.join().unwrap());
}

#[tokio::test]
async fn keep_alives_hold_a_connection_that_has_nothing_to_say() {
    bounded(async {
        let pair = pair(Limits { idle: Duration::from_millis(300), ..Limits::default() }).await;
        // That nothing happens can only be seen by waiting: four idle timeouts.
        let wait = tokio::time::timeout(Duration::from_millis(1200), pair.opened.closed()).await;
        assert!(wait.is_err(), "the connection ended: {wait:?}");
    })
    .await;
}

#[tokio::test]
async fn addresses_are_resolved_or_named() {
    bounded(async {
        for text in ["127.0.0.1:7171", "[::1]:7171"] {
            assert_eq!(resolve(text, LONG).await.unwrap().to_string(), text);
        }
        assert!(resolve("localhost:7171", LONG).await.unwrap().ip().is_loopback());
        for text in
            ["", "localhost", ":7171", "localhost:", "localhost:port", "localhost:70000", "a b:1", "::1:7171"]
        {
            let error = resolve(text, LONG).await.unwrap_err().to_string();
            assert_eq!(
                error,
                format!("\"{text}\" is not an address: write host:port, such as 127.0.0.1:7171")
            );
        }
        let error = resolve("nowhere.invalid:1", Duration::from_millis(200)).await.unwrap_err().to_string();
        assert!(
            error.starts_with("could not find the address of \"nowhere.invalid:1\" within 0.2 s: "),
            "{error}"
        );
    })
    .await;
}

#[tokio::test]
async fn roles_beyond_the_first_are_told_apart() {
    bounded(async {
        let authority = RunAuthority::new("run").unwrap();
        let limits = Limits::default();
        let server = Endpoint::bind(loopback(), &authority.issue(SERVER).unwrap(), &limits).unwrap();
        let address = server.local_address().unwrap();
        let mut accepted = accept_all(&server);
        for role in [Role::Observer, Role::Worker(WorkerId(0)), Role::Worker(WorkerId(u32::MAX))] {
            let client = Endpoint::client(&authority.issue(role).unwrap(), &limits).unwrap();
            // If it were closed at once, the server might hear of that before it is done.
            let _opened = client.connect(address, SERVER, LONG).await.unwrap();
            assert_eq!(accepted.recv().await.unwrap().unwrap().peer(), role);
        }
    })
    .await;
}

//! That few peers on this machine get a socket and a thread each, and everybody else what there was before.

use std::net::UdpSocket;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rkyv::util::AlignedVec;
use windlass_common::ids::ServerId;
use windlass_transport::{Connection, Endpoint, Limits, Priority, Role, RunAuthority};

use crate::support::{LONG, Run, SERVER, bounded, loopback};

/// Serves every connection in a task of its own, which sends each first frame back, and says on what thread.
fn echo(endpoint: &Endpoint) -> tokio::sync::mpsc::Receiver<String> {
    let (sender, receiver) = tokio::sync::mpsc::channel(100);
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let sender = sender.clone();
            incoming.spawn(async move |incoming| {
                let Ok(connection) = incoming.finish().await else { return };
                let (mut to, mut from) = connection.accept_stream().await.unwrap();
                let mut header = AlignedVec::new();
                let header = from.header(100, &mut header).await.unwrap().unwrap().to_vec();
                let mut payload = vec![0; 200_000];
                from.payload(&mut payload).await.unwrap();
                to.send(&header, [Bytes::from(payload)]).await.unwrap();
                sender.send(thread::current().name().unwrap_or_default().to_owned()).await.unwrap();
                connection.closed().await;
            });
        }
    });
    receiver
}

async fn exchange(connection: &Connection) {
    let (mut to, mut from) = connection.open_stream(Priority::Normal).await.unwrap();
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    to.send(b"head", [Bytes::from(sent.clone())]).await.unwrap();
    let (mut header, mut back) = (AlignedVec::new(), vec![0; 200_000]);
    assert_eq!(from.header(100, &mut header).await.unwrap().unwrap(), b"head");
    from.payload(&mut back).await.unwrap();
    assert!(sent == back, "other bytes came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_peers_get_a_thread_each_and_the_others_share() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        server.set_lanes(2, false);
        let mut threads = echo(&server);
        let clients: Vec<_> = (0..3).map(|_| run.client()).collect();
        let mut open = Vec::new();
        for (i, client) in clients.iter().enumerate() {
            let connection = client.connect(address, SERVER, LONG).await.unwrap();
            assert_eq!(connection.remote_address(), address);
            exchange(&connection).await;
            assert_eq!(threads.recv().await.unwrap() == "lane", i < 2, "client {i}");
            open.push(connection);
        }
        // It comes again from the same port, first beside its connection and then instead of it.
        for _ in 0..2 {
            let again = clients[0].connect(address, SERVER, LONG).await.unwrap();
            exchange(&again).await;
            assert_eq!(threads.recv().await.unwrap(), "lane");
            open[0].close(0, "replaced");
            open[0] = again;
        }
        server.shutdown(LONG).await;
        for connection in &open {
            let text = connection.closed().await.to_string();
            assert!(text.contains("the process is shutting down"), "{text}");
        }
        assert!(server.accept().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn none_has_one_unless_they_are_asked_for() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        let mut threads = echo(&server);
        let client = run.client();
        exchange(&client.connect(address, SERVER, LONG).await.unwrap()).await;
        assert_ne!(threads.recv().await.unwrap(), "lane");
    })
    .await;
}

#[tokio::test]
async fn the_address_is_still_taken_and_free_when_the_endpoint_is_gone() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        server.set_lanes(8, false);
        let mut threads = echo(&server);
        let client = run.client();
        let connection = client.connect(address, SERVER, LONG).await.unwrap();
        exchange(&connection).await;
        assert_eq!(threads.recv().await.unwrap(), "lane");
        assert!(UdpSocket::bind(address).is_err(), "two processes would have one address");
        let other = Endpoint::bind(address, &run.server, &Limits::default()).unwrap_err().to_string();
        assert!(other.contains("another process has this port"), "{other}");
        server.shutdown(LONG).await;
        drop((server, threads));
        // Its sockets are closed by tasks and threads that end now.
        while UdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The cores that the calling thread may run on.
#[cfg(target_os = "linux")]
fn may_run_on() -> Vec<usize> {
    let may = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| may.is_set(core)).collect()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_lane_that_is_to_stay_with_its_peer_does_when_it_is_told_to_and_nothing_else() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(100);
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let sender = sender.clone();
                incoming.spawn(async move |incoming| {
                    let connection = incoming.finish().await.unwrap();
                    let (_, mut from) = connection.accept_stream().await.unwrap();
                    from.header(100, &mut AlignedVec::new()).await.unwrap();
                    let before = may_run_on();
                    connection.stay_with_peer();
                    sender.send((before, may_run_on())).await.unwrap();
                    connection.closed().await;
                });
            }
        });
        let all = may_run_on();
        // At first there are no lanes.
        for (lanes, stay, nth) in [(0, true, 0), (1, true, 0), (2, true, 1), (3, false, 1)] {
            server.set_lanes(lanes, stay);
            let client = run.clone();
            let (ends, ended) = mpsc::channel::<()>();
            let peer = thread::spawn(move || {
                windlass_transport::keep_to_a_core(nth);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let client = client.client();
                    let connection = client.connect(address, SERVER, LONG).await.unwrap();
                    let (mut to, _) = connection.open_stream(Priority::Normal).await.unwrap();
                    to.send(b"head", []).await.unwrap();
                    while ended.try_recv() == Err(TryRecvError::Empty) {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                });
            });
            let (before, after) = receiver.recv().await.unwrap();
            drop(ends);
            tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
            assert_eq!(before, all);
            let expected = if lanes > 0 && stay { vec![all[nth % all.len()]] } else { all.clone() };
            assert_eq!(after, expected, "with {lanes} lanes that stay: {stay}");
        }
        server.shutdown(LONG).await;
    })
    .await;
}

/// What one sends to the other must not come to a lane that knows nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_listen_connect_to_each_other() {
    bounded(async {
        let authority = RunAuthority::new("test").unwrap();
        let roles = [0, 1].map(|number| Role::Server(ServerId(number)));
        let both = roles.map(|role| {
            let identity = authority.issue(role).unwrap();
            Endpoint::bind(loopback(), &identity, &Limits::default()).unwrap()
        });
        let addresses = [0, 1].map(|i| both[i].local_address().unwrap());
        let mut threads = [0, 1].map(|i| echo(&both[i]));
        // One has joined before it knew whether there are lanes.
        let joined = both[1].connect(addresses[0], roles[0], LONG).await.unwrap();
        both.iter().for_each(|endpoint| endpoint.set_lanes(8, false));
        exchange(&joined).await;
        threads[0].recv().await.unwrap();
        let mut open = vec![joined];
        for round in 0..3 {
            for (i, other) in [(0, 1), (1, 0)] {
                let connection = both[i].connect(addresses[other], roles[other], LONG).await.unwrap();
                exchange(&connection).await;
                assert_eq!(threads[other].recv().await.unwrap(), "lane", "round {round}");
                open.push(connection);
            }
        }
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(open.iter().all(|connection| !connection.is_closed()));
    })
    .await;
}

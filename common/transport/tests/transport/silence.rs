//! That every wait ends with a peer that is dead, and those with a patience with one that lives and stands still.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use rkyv::util::AlignedVec;
use windlass_transport::bare;
use windlass_transport::{ConnectionLost, FrameError, FramePart, FrameReceiver, Limits, Priority};

use crate::support::{LONG, Run, SERVER, accept_all, bounded, loopback, pair, standing_runtime};

const PATIENCE: Duration = Duration::from_millis(400);
const WINDOW: u64 = 65_536;

fn small() -> Limits {
    Limits { stream_window: WINDOW, ..Limits::default() }
}

async fn header(receiver: &mut FrameReceiver) -> Result<Option<Vec<u8>>, FrameError> {
    let mut buffer = AlignedVec::new();
    Ok(receiver.header(1000, &mut buffer).await?.map(<[u8]>::to_vec))
}

#[test]
fn every_wait_ends_after_the_idle_timeout_of_a_peer_that_is_dead() {
    let run = Run::with(Limits { idle: Duration::from_millis(400), streams: 2, ..small() });
    let (here, there) = (standing_runtime(), standing_runtime());
    let (server, address) = here.block_on(async { run.listen() });
    let client = there.block_on(async { run.client() });
    let (accepted, until_accepted) = tokio::sync::oneshot::channel::<()>();
    // The client's runtime stands still in the middle of a frame.
    let peer = std::thread::spawn(move || {
        let kept = there.block_on(bounded(async {
            let connection = client.connect(address, SERVER, LONG).await.unwrap();
            let (mut sender, receiver) = connection.open_stream(Priority::Normal).await.unwrap();
            sender.send(b"head", [Bytes::from_static(&[0; 10])]).await.unwrap();
            until_accepted.await.unwrap();
            (connection, sender, receiver)
        }));
        (there, client, kept)
    });
    let ends = here.block_on(bounded(async {
        let connection = server.accept().await.unwrap().finish().await.unwrap();
        let (mut sender, mut receiver) = connection.accept_stream().await.unwrap();
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"head");
        let (mut last, mut silent) = connection.open_stream(Priority::Normal).await.unwrap();
        last.send(b"head", []).await.unwrap();
        last.finish().unwrap();
        let (_other, mut skipped) = connection.open_stream(Priority::Normal).await.unwrap();
        accepted.send(()).unwrap();
        let mut into = [0; 20];
        let payload = Bytes::from(vec![0; 1_000_000]);
        let ends = tokio::join!(
            connection.closed(),
            async { connection.accept_stream().await.map(drop).unwrap_err() },
            async { connection.open_stream(Priority::Normal).await.map(drop).unwrap_err() },
            async { lost(header(&mut silent).await) },
            async { lost(receiver.payload(&mut into).await) },
            async { lost(skipped.skip_payload(1).await) },
            async { lost(sender.send(b"head", [payload]).await) },
            async { lost(last.received(LONG).await) },
        );
        [ends.0, ends.1, ends.2, ends.3, ends.4, ends.5, ends.6, ends.7]
    }));
    assert!(ends.iter().all(|end| *end == ConnectionLost::Silent), "{ends:?}");
    drop(peer.join().unwrap());
}

fn lost<T: std::fmt::Debug>(result: Result<T, FrameError>) -> ConnectionLost {
    match result.unwrap_err() {
        FrameError::Lost(lost) => lost,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_frame_of_which_nothing_is_taken_is_given_up() {
    bounded(async {
        let pair = pair(small()).await;
        let (mut sender, _back) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        sender.set_patience(PATIENCE);
        let error = sender.send(b"head", [Bytes::from(vec![0; 1_000_000])]).await.unwrap_err();
        assert_eq!(error, FrameError::NotTaken { within: PATIENCE });
        assert_eq!(error.to_string(), "the peer has taken nothing of what was sent to it for 0.4 s");
        assert_eq!(sender.send(b"head", []).await.unwrap_err(), FrameError::Interrupted);
    })
    .await;
}

#[tokio::test]
async fn so_is_a_piece_of_one() {
    bounded(async {
        let pair = pair(small()).await;
        let not_taken = Err(FrameError::NotTaken { within: PATIENCE });
        let (mut sender, _back) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        sender.set_patience(PATIENCE);
        sender.begin(b"head", []).await.unwrap();
        // Between the pieces the sender may take its time.
        tokio::time::sleep(PATIENCE * 2).await;
        sender.chunk(Bytes::from(vec![0; 1000])).await.unwrap();
        assert_eq!(sender.chunk(Bytes::from(vec![0; 1_000_000])).await, not_taken);
        assert_eq!(sender.end(), Err(FrameError::Interrupted));
        let (mut sender, _back) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        sender.set_patience(PATIENCE);
        assert_eq!(sender.begin(&vec![0; 1_000_000], []).await, not_taken);
        assert_eq!(sender.chunk(Bytes::new()).await, Err(FrameError::Interrupted));
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_is_slow_and_goes_on_is_waited_for() {
    bounded(async {
        let pair = pair(small()).await;
        let (mut sender, _back) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        sender.set_patience(PATIENCE * 2);
        let begun = std::time::Instant::now();
        let reading = async {
            let (_forth, mut receiver) = pair.accepted.accept_stream().await.unwrap();
            receiver.set_patience(PATIENCE * 2);
            header(&mut receiver).await.unwrap().unwrap();
            // Far longer than the patience in all, and never so long without a step.
            for _ in 0..20 {
                tokio::time::sleep(PATIENCE / 4).await;
                receiver.payload(&mut vec![0; WINDOW as usize]).await.unwrap();
            }
        };
        let payload = Bytes::from(vec![0; 20 * WINDOW as usize]);
        let (sent, ()) = tokio::join!(sender.send(b"head", [payload]), reading);
        sent.unwrap();
        assert!(begun.elapsed() > PATIENCE * 3);
    })
    .await;
}

/// Sends raw bytes on a stream that stays open, and hands over the reader of the other side.
async fn raw(bytes: &[u8]) -> (FrameReceiver, impl Sized + use<>) {
    let run = Run::new();
    let (server, address) = run.listen();
    let mut accepted = accept_all(&server);
    let plain = bare::endpoint(loopback(), &run.worker, &run.limits).unwrap();
    let connection = plain.connect(address, "server-0.windlass").unwrap().await.unwrap();
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    let accepted = accepted.recv().await.unwrap().unwrap();
    let (sender, mut receiver) = accepted.accept_stream().await.unwrap();
    receiver.set_patience(PATIENCE);
    (receiver, (server, plain, connection, send, receive, accepted, sender))
}

#[tokio::test]
async fn a_frame_that_stands_still_midway_is_given_up_and_says_where() {
    let halted = |part, found, expected| FrameError::Halted { part, found, expected, within: PATIENCE };
    let frame = b"WNDL\x01\0\0\0\x04\0\0\0\0\0\0\0head12345";
    bounded(async {
        let (mut receiver, _scene) = raw(&frame[..7]).await;
        let error = header(&mut receiver).await.unwrap_err();
        assert_eq!(error, halted(FramePart::Prefix, 7, 16));
        let sentence = "the peer stopped inside the prefix of a frame, after 7 of 16 bytes, and sent nothing more for 0.4 s";
        assert_eq!(error.to_string(), sentence);
        let (mut receiver, _scene) = raw(&frame[..18]).await;
        assert_eq!(header(&mut receiver).await.unwrap_err(), halted(FramePart::Header, 2, 4));
        let (mut receiver, _scene) = raw(frame).await;
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"head");
        assert_eq!(receiver.payload(&mut [0; 9]).await.unwrap_err(), halted(FramePart::Payload, 5, 9));
        let (mut receiver, _scene) = raw(frame).await;
        header(&mut receiver).await.unwrap().unwrap();
        assert_eq!(receiver.skip_payload(6).await.unwrap_err(), halted(FramePart::Payload, 5, 6));
        assert_eq!(header(&mut receiver).await.unwrap_err(), FrameError::Interrupted);
        let (mut receiver, _scene) = raw(frame).await;
        header(&mut receiver).await.unwrap().unwrap();
        let read = receiver.pieces(9, &mut [0; 3], |_, _| ()).await;
        assert_eq!(read.unwrap_err(), halted(FramePart::Payload, 2, 3));
        assert_eq!(header(&mut receiver).await.unwrap_err(), FrameError::Interrupted);
    })
    .await;
}

#[tokio::test]
async fn between_frames_the_patience_of_a_stream_does_not_count() {
    bounded(async {
        let (mut receiver, _scene) = raw(b"WNDL\x01\0\0\0\x04\0\0\0\0\0\0\0head").await;
        header(&mut receiver).await.unwrap().unwrap();
        // That nothing happens can only be seen by waiting.
        let waiting = tokio::time::timeout(PATIENCE * 3, header(&mut receiver)).await;
        assert!(waiting.is_err(), "{waiting:?}");
    })
    .await;
}

/// What bounds each wait of the transport: a deadline that is an argument or a limit, the patience of the stream, or the
/// connection alone. Whoever adds a wait has to say here which it is, and to test it.
#[test]
fn each_wait_is_known() {
    let sources = [
        include_str!("../../src/connection.rs"),
        include_str!("../../src/endpoint.rs"),
        include_str!("../../src/frame.rs"),
    ];
    let of_line = |line: &str| {
        let rest = line.trim_start().strip_prefix("pub async fn ")?;
        Some(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
    };
    let found: BTreeSet<String> = sources.iter().flat_map(|s| s.lines()).filter_map(of_line).collect();
    let by_deadline = ["connect", "shutdown", "finish", "resolve", "received"];
    let by_patience = ["send", "begin", "chunk", "header", "payload", "pieces", "skip_payload"];
    let by_connection = ["accept", "accept_stream", "open_stream", "closed"];
    let known = by_deadline.iter().chain(&by_patience).chain(&by_connection);
    assert_eq!(found, known.map(|name| (*name).to_owned()).collect());
}

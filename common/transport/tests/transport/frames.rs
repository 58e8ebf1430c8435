//! That frames arrive as they were sent, that malformed ones are told apart, and what the meters say.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rkyv::util::AlignedVec;
use windlass_transport::bare::{self, quinn};
use windlass_transport::{FrameError, FramePart, FrameReceiver, Limits, Pool, Priority, bytes_of};

use crate::support::{LONG, Run, SERVER, accept_all, bounded, loopback, pair, standing_runtime};

const LIMIT: usize = 1000;

async fn header(receiver: &mut FrameReceiver) -> Result<Option<Vec<u8>>, FrameError> {
    let mut buffer = AlignedVec::new();
    Ok(receiver.header(LIMIT, &mut buffer).await?.map(<[u8]>::to_vec))
}

#[tokio::test]
async fn frames_of_every_size_arrive_as_sent_and_are_counted() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        let pool = Pool::new(16 << 20);
        let mut floats = pool.take(1_250_000);
        floats.iter_mut().enumerate().for_each(|(i, value)| *value = i as f32);
        let floats = Arc::new(floats);
        let big = bytes_of(Arc::clone(&floats));

        let answering = tokio::spawn({
            let connection = pair.accepted.clone();
            async move {
                let (mut sender, mut receiver) = connection.accept_stream().await.unwrap();
                let mut buffer = AlignedVec::new();
                let mut values = vec![0f32; 1_250_000];
                while let Some(head) = receiver.header(LIMIT, &mut buffer).await.unwrap() {
                    let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
                    let payload = &mut bytemuck::cast_slice_mut::<f32, u8>(&mut values)[..length];
                    // The header's bytes stay readable while the payload is read.
                    receiver.payload(payload).await.unwrap();
                    sender.send(head, [Bytes::copy_from_slice(payload)]).await.unwrap();
                }
                sender.finish().unwrap();
            }
        });

        let (mut sender, mut receiver) = pair.opened.open_stream(Priority::High).await.unwrap();
        let sizes = [0usize, 1, 5_000_000, 0, 4096, 123_457];
        for size in sizes {
            // In several chunks, empty ones among them.
            let (front, back) = (big.slice(..size / 3), big.slice(size / 3..size));
            let head = [&(size as u32).to_le_bytes()[..], &[0xab; 17]].concat();
            sender.send(&head, [front, Bytes::new(), back]).await.unwrap();
            assert_eq!(header(&mut receiver).await.unwrap().unwrap(), head);
            let mut back = vec![0; size];
            receiver.payload(&mut back).await.unwrap();
            assert!(back == big[..size], "{size} bytes came back changed");
        }
        sender.finish().unwrap();
        assert_eq!(sender.send(&[], []).await.unwrap_err(), FrameError::Finished);
        assert_eq!(header(&mut receiver).await.unwrap(), None);
        sender.received(LONG).await.unwrap();
        answering.await.unwrap();

        let total: u64 = sizes.iter().map(|size| *size as u64).sum();
        let (here, there) = (pair.opened.stats(), pair.accepted.stats());
        for meter in [here, there] {
            assert_eq!((meter.payload_sent, meter.payload_received), (total, total));
            assert_eq!((meter.frames_sent, meter.frames_received), (6, 6));
            assert!(meter.wire_sent > total && meter.wire_received > total, "{meter:?}");
            assert!(meter.wire_sent < total * 5 / 4, "{meter:?}");
            assert!(meter.mtu > 59_900, "MTU discovery must come near its bound on loopback: {}", meter.mtu);
            assert!(meter.packets_sent > 0 && meter.packets_lost < meter.packets_sent);
        }
        // The floats return to the pool when the peer has them all and this test lets go.
        drop((big, floats));
        assert_eq!(pool.kept_bytes() / 5_000_000, 1);
    })
    .await;
}

#[tokio::test]
async fn small_windows_slow_the_sender_and_lose_nothing() {
    bounded(async {
        let limits = Limits {
            stream_window: 65_536,
            receive_window: 65_536,
            send_window: 65_536,
            ..Limits::default()
        };
        let pair = pair(limits).await;
        let payload = Bytes::from((0..2_000_000u32).map(|i| (i % 251) as u8).collect::<Vec<u8>>());
        let (mut sender, _back) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        let sending = tokio::spawn({
            let payload = payload.clone();
            async move {
                sender.send(b"one", [payload.clone()]).await.unwrap();
                sender.send(b"two", [payload]).await.unwrap();
                sender
            }
        });
        let (_forth, mut receiver) = pair.accepted.accept_stream().await.unwrap();
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"one");
        receiver.skip_payload(1_999_999).await.unwrap();
        let mut last = [0];
        receiver.payload(&mut last).await.unwrap();
        assert_eq!(last[0], payload[1_999_999]);
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"two");
        let mut second = vec![0; 1_000_001];
        receiver.payload(&mut second).await.unwrap();
        let (mut memory, mut sizes) = (vec![0; 70_001], Vec::new());
        let pieces = receiver.pieces(payload.len() - second.len(), &mut memory, |at, bytes| {
            assert_eq!(1_000_001 + at, second.len());
            second.extend_from_slice(bytes);
            sizes.push(bytes.len());
        });
        pieces.await.unwrap();
        assert!(second == payload);
        assert_eq!((sizes.len(), sizes[..14] == [70_001; 14], sizes[14]), (15, true, 19_985));
        sending.await.unwrap();
        assert_eq!(pair.accepted.stats().payload_received, 4_000_000);
    })
    .await;
}

fn frame(head: &[u8]) -> Vec<u8> {
    [b"WNDL\x01\0\0\0", &(head.len() as u32).to_le_bytes()[..], &[0; 4], head].concat()
}

/// Sends raw bytes on a stream, ends it, and hands over the reader of the other side.
async fn raw(bytes: &[u8]) -> (FrameReceiver, impl Sized + use<>) {
    let run = Run::new();
    let (server, address) = run.listen();
    let mut accepted = accept_all(&server);
    let plain = bare::endpoint(loopback(), &run.worker, &run.limits).unwrap();
    let connection = plain.connect(address, "server-0.windlass").unwrap().await.unwrap();
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    let accepted = accepted.recv().await.unwrap().unwrap();
    let (sender, receiver) = accepted.accept_stream().await.unwrap();
    (receiver, (server, plain, connection, receive, accepted, sender))
}

#[tokio::test]
async fn each_malformed_kin_of_a_frame_is_told_apart() {
    let changed = |place: usize, to: u8| {
        let mut bytes = frame(b"head");
        bytes[place] = to;
        bytes
    };
    let truncated = |part, found, expected| FrameError::Truncated { part, found, expected };
    let cases = [
        (changed(0, b'w'), FrameError::Magic { found: *b"wNDL" }, "begins with the bytes [77, 4e, 44, 4c]"),
        (
            changed(4, 2),
            FrameError::Version { found: 2 },
            "frames of version 2, and this process reads version 1",
        ),
        (changed(5, 1), FrameError::Version { found: 257 }, "frames of version 257"),
        (
            changed(7, 1),
            FrameError::Reserved { found: (256, 0) },
            "reserved fields are (256, 0) instead of 0",
        ),
        (changed(12, 9), FrameError::Reserved { found: (0, 9) }, "reserved fields are (0, 9) instead of 0"),
        (
            frame(&[0; LIMIT + 1]),
            FrameError::HeaderTooLong { found: 1001, limit: 1000 },
            "1001 bytes, over the limit of 1000",
        ),
        (
            changed(11, 0xff),
            FrameError::HeaderTooLong { found: 0xff00_0004, limit: 1000 },
            "over the limit of 1000",
        ),
        (
            frame(b"")[..1].to_vec(),
            truncated(FramePart::Prefix, 1, 16),
            "inside the prefix of a frame, after 1 of 16",
        ),
        (frame(b"")[..15].to_vec(), truncated(FramePart::Prefix, 15, 16), "after 15 of 16 bytes"),
        (
            frame(b"head")[..16].to_vec(),
            truncated(FramePart::Header, 0, 4),
            "inside the header of a frame, after 0 of 4",
        ),
        (frame(b"head")[..19].to_vec(), truncated(FramePart::Header, 3, 4), "after 3 of 4 bytes"),
    ];
    bounded(async {
        for (bytes, expected, sentence) in cases {
            let (mut receiver, _scene) = raw(&bytes).await;
            let error = header(&mut receiver).await.unwrap_err();
            assert_eq!(error, expected);
            assert!(error.to_string().contains(sentence), "\"{error}\" does not say \"{sentence}\"");
            assert_eq!(header(&mut receiver).await.unwrap_err(), expected, "a spoilt stream stays spoilt");
        }
        let (mut receiver, _scene) = raw(&frame(&[7; LIMIT])).await;
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), vec![7; LIMIT]);
        assert_eq!(header(&mut receiver).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_payload_cut_off_is_told_and_the_stream_stays_spoilt() {
    bounded(async {
        let bytes = [frame(b"head"), vec![1; 10]].concat();
        let (mut receiver, _scene) = raw(&bytes).await;
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"head");
        let cut = FrameError::Truncated { part: FramePart::Payload, found: 10, expected: 11 };
        assert_eq!(receiver.payload(&mut [0; 11]).await.unwrap_err(), cut);
        // It must not look like a clean end.
        assert_eq!(header(&mut receiver).await.unwrap_err(), FrameError::Interrupted);

        let (mut receiver, _scene) = raw(&bytes).await;
        header(&mut receiver).await.unwrap();
        assert_eq!(receiver.skip_payload(11).await.unwrap_err(), cut);
        assert_eq!(receiver.payload(&mut [0; 1]).await.unwrap_err(), FrameError::Interrupted);

        let (mut receiver, _scene) = raw(&bytes).await;
        header(&mut receiver).await.unwrap();
        let (mut pieces, mut memory) = (Vec::new(), [0; 4]);
        let read = receiver.pieces(11, &mut memory, |at, bytes| pieces.push((at, bytes.to_vec()))).await;
        let cut = FrameError::Truncated { part: FramePart::Payload, found: 2, expected: 3 };
        assert_eq!(read.unwrap_err(), cut);
        assert_eq!(pieces, [(0, vec![1; 4]), (4, vec![1; 4])]);
        assert_eq!(receiver.payload(&mut [0; 1]).await.unwrap_err(), FrameError::Interrupted);
    })
    .await;
}

#[tokio::test]
async fn a_header_may_be_given_up_at_any_byte_and_taken_up_again() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        let mut accepted = accept_all(&server);
        let plain = bare::endpoint(loopback(), &run.worker, &run.limits).unwrap();
        let connection = plain.connect(address, "server-0.windlass").unwrap().await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let bytes = [frame(b"a header"), frame(b"another")].concat();
        send.write_all(&bytes[..1]).await.unwrap();
        let accepted = accepted.recv().await.unwrap().unwrap();
        let (_sender, mut receiver) = accepted.accept_stream().await.unwrap();

        let mut found = Vec::new();
        let mut rest = bytes[1..].iter();
        while found.len() < 2 {
            // Dropped after a millisecond, whether or not the last byte has come by then.
            if let Ok(head) = tokio::time::timeout(Duration::from_millis(1), header(&mut receiver)).await {
                found.push(head.unwrap().unwrap());
            }
            if let Some(byte) = rest.next() {
                send.write_all(&[*byte]).await.unwrap();
            }
        }
        assert_eq!(found, [&b"a header"[..], b"another"]);
    })
    .await;
}

#[tokio::test]
async fn operations_given_up_midway_spoil_their_stream() {
    bounded(async {
        let limits = Limits { stream_window: 65_536, receive_window: 65_536, ..Limits::default() };
        let pair = pair(Limits { send_window: 65_536, ..limits }).await;
        let (mut sender, _back) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        let payload = Bytes::from(vec![0; 1_000_000]);
        // Nobody reads, so the windows fill and this cannot end.
        let sending = sender.send(b"head", [payload]);
        assert!(tokio::time::timeout(Duration::from_millis(100), sending).await.is_err());
        assert_eq!(sender.send(b"head", []).await.unwrap_err(), FrameError::Interrupted);
        assert_eq!(sender.finish().unwrap_err(), FrameError::Interrupted);

        let (_forth, mut receiver) = pair.accepted.accept_stream().await.unwrap();
        header(&mut receiver).await.unwrap();
        let mut into = vec![0; 1_000_000];
        assert!(tokio::time::timeout(Duration::from_millis(100), receiver.payload(&mut into)).await.is_err());
        assert_eq!(header(&mut receiver).await.unwrap_err(), FrameError::Interrupted);
    })
    .await;
}

#[tokio::test]
async fn a_frame_in_pieces_is_the_same_frame() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        let (mut sender, _back) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        let payload: Bytes = (0..300_000_u32).map(|i| (i % 251) as u8).collect::<Vec<u8>>().into();
        let interrupted = Err(FrameError::Interrupted);
        assert_eq!(sender.chunk(payload.slice(..1)).await, interrupted, "no frame has been begun");
        assert_eq!(sender.end(), interrupted);
        // Whole, in pieces, and whole again.
        sender.send(b"one", [payload.clone()]).await.unwrap();
        sender.begin(b"two", []).await.unwrap();
        let (_forth, mut receiver) = pair.accepted.accept_stream().await.unwrap();
        let mut found = vec![0; payload.len()];
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"one");
        receiver.payload(&mut found).await.unwrap();
        assert!(found == payload);
        // What has been sent of a frame comes before the rest of it is there.
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"two");
        for piece in [0..0, 0..1, 1..200_000] {
            sender.chunk(payload.slice(piece.clone())).await.unwrap();
            assert_eq!(sender.send(b"between", []).await, interrupted);
            assert_eq!(sender.begin(b"between", []).await, interrupted);
            assert_eq!(sender.finish(), interrupted);
            receiver.payload(&mut found[piece.clone()]).await.unwrap();
            assert!(found[piece.clone()] == payload[piece]);
        }
        sender.chunk(payload.slice(200_000..)).await.unwrap();
        sender.end().unwrap();
        assert_eq!(sender.end(), interrupted);
        receiver.payload(&mut found[200_000..]).await.unwrap();
        assert!(found == payload);
        sender.send(b"three", []).await.unwrap();
        sender.finish().unwrap();
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"three");
        assert_eq!(header(&mut receiver).await.unwrap(), None);
        let (here, there) = (pair.opened.stats(), pair.accepted.stats());
        assert_eq!((here.frames_sent, here.payload_sent), (3, 600_000));
        assert_eq!((there.frames_received, there.payload_received), (3, 600_000));
    })
    .await;
}

#[tokio::test]
async fn a_piece_given_up_midway_spoils_its_stream() {
    bounded(async {
        let limits = Limits { stream_window: 65_536, receive_window: 65_536, ..Limits::default() };
        let pair = pair(Limits { send_window: 65_536, ..limits }).await;
        let (mut sender, _back) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        sender.begin(b"head", []).await.unwrap();
        // Nobody reads, so the windows fill and this cannot end.
        let sending = sender.chunk(Bytes::from(vec![0; 1_000_000]));
        assert!(tokio::time::timeout(Duration::from_millis(100), sending).await.is_err());
        let interrupted = Err(FrameError::Interrupted);
        assert_eq!(sender.chunk(Bytes::new()).await, interrupted);
        assert_eq!(sender.end(), interrupted);
        assert_eq!(sender.send(b"head", []).await, interrupted);
    })
    .await;
}

#[tokio::test]
async fn a_stream_given_up_by_one_side_is_told_to_the_other() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        let (mut sender, receiver) = pair.opened.open_stream(Priority::Low).await.unwrap();
        sender.send(b"hello", []).await.unwrap();
        let (mut forth, mut back) = pair.accepted.accept_stream().await.unwrap();
        assert_eq!(header(&mut back).await.unwrap().unwrap(), b"hello");
        drop((back, receiver));
        for given_up in [&mut sender, &mut forth] {
            let told = loop {
                // The news takes a moment; sending goes on until it has come.
                if let Err(error) = given_up.send(b"anybody?", []).await {
                    break error;
                }
                tokio::task::yield_now().await;
            };
            assert_eq!(told, FrameError::Abandoned { code: 0 });
            assert_eq!(given_up.received(LONG).await.unwrap_err(), told);
        }
    })
    .await;
}

#[test]
fn the_end_of_a_stream_is_not_waited_for_beyond_the_deadline() {
    let run = Run::new();
    let (here, there) = (standing_runtime(), standing_runtime());
    let (server, address) = there.block_on(async { run.listen() });
    let (connected, until_connected) = tokio::sync::oneshot::channel::<()>();
    let (stand_still, until_still) = tokio::sync::oneshot::channel();
    // The peer's runtime runs until both sides have the connection, and then stands still.
    std::thread::spawn(move || {
        let kept = there.block_on(bounded(async {
            let connection = server.accept().await.unwrap().finish().await.unwrap();
            until_connected.await.unwrap();
            (server, connection)
        }));
        stand_still.send((there, kept)).unwrap();
    });
    here.block_on(bounded(async {
        let client = run.client();
        let connection = client.connect(address, SERVER, LONG).await.unwrap();
        connected.send(()).unwrap();
        let kept = until_still.await.unwrap();
        let (mut sender, _receiver) = connection.open_stream(Priority::Normal).await.unwrap();
        sender.send(b"head", [Bytes::from(vec![0; 1000])]).await.unwrap();
        sender.finish().unwrap();
        let error = sender.received(Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(error.to_string(), "the peer did not confirm the end of the stream within 0.1 s");
        // A runtime may not be dropped inside another one.
        std::thread::spawn(move || drop(kept)).join().unwrap();
    }));
}

#[tokio::test]
async fn what_the_peers_transport_received_is_readable_after_the_close() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        let (mut sender, _receiver) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        sender.send(b"last words", [Bytes::from(vec![5; 1_000_000])]).await.unwrap();
        sender.finish().unwrap();
        sender.received(LONG).await.unwrap();
        pair.opened.close(0, "done");
        pair.accepted.closed().await;
        let (_forth, mut receiver) = pair.accepted.accept_stream().await.unwrap();
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"last words");
        let mut payload = vec![0; 1_000_000];
        receiver.payload(&mut payload).await.unwrap();
        assert!(payload.iter().all(|byte| *byte == 5));
        assert_eq!(header(&mut receiver).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn closing_after_the_answers_delivers_all() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        let serving = tokio::spawn({
            let connection = pair.accepted.clone();
            async move {
                let (mut sender, mut receiver) = connection.accept_stream().await.unwrap();
                let mut sum = 0u64;
                while let Some(head) = header(&mut receiver).await.unwrap() {
                    let mut payload = vec![0; 300_000];
                    receiver.payload(&mut payload).await.unwrap();
                    sum += payload.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                    sender.send(&head, []).await.unwrap();
                }
                // Ends its side only when it has read everything; that is the peer's leave to close.
                sender.finish().unwrap();
                (sum, connection.closed().await)
            }
        });
        let (mut sender, mut receiver) = pair.opened.open_stream(Priority::Normal).await.unwrap();
        for number in 0..10u8 {
            sender.send(&[number], [Bytes::from(vec![1; 300_000])]).await.unwrap();
        }
        sender.finish().unwrap();
        let mut answered = Vec::new();
        while let Some(head) = header(&mut receiver).await.unwrap() {
            answered.extend(head);
        }
        assert_eq!(answered, (0..10).collect::<Vec<u8>>());
        pair.opened.close(3, "done");
        pair.client.shutdown(Duration::from_secs(10)).await;
        let (sum, lost) = serving.await.unwrap();
        assert_eq!(sum, 3_000_000);
        assert_eq!(lost.to_string(), "the peer closed the connection: done (code 3)");
    })
    .await;
}

#[tokio::test]
async fn a_reset_stream_is_no_clean_end() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        let mut accepted = accept_all(&server);
        let plain = bare::endpoint(loopback(), &run.worker, &run.limits).unwrap();
        let connection = plain.connect(address, "server-0.windlass").unwrap().await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&frame(b"head")).await.unwrap();
        let accepted = accepted.recv().await.unwrap().unwrap();
        let (_sender, mut receiver) = accepted.accept_stream().await.unwrap();
        assert_eq!(header(&mut receiver).await.unwrap().unwrap(), b"head");
        send.reset(quinn::VarInt::from_u32(9)).unwrap();
        assert_eq!(header(&mut receiver).await.unwrap_err(), FrameError::Abandoned { code: 9 });
    })
    .await;
}

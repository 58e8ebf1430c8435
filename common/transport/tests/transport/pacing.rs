//! That an emulated link makes real connections as slow as its rate says, and all of a process's together.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rkyv::util::AlignedVec;
use windlass_common::plan::LinkRate;
use windlass_transport::{Connection, FrameReceiver, FrameSender, Limits, Priority};

use crate::support::{LONG, Run, SERVER, bounded, pair};

const RATE: Option<LinkRate> = Some(LinkRate(100_000_000));
const MB: usize = 1_000_000;

/// Asserts that the work takes the time of 2 MB at 100 Mbit/s, 0.16 s: never less than the burst explains, and, since a
/// busy machine may add to it, in one of a few attempts not much more.
async fn assert_time_of_two_megabytes(what: &str, mut work: impl AsyncFnMut()) {
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        work().await;
        let time = start.elapsed().as_secs_f64();
        assert!(time >= 0.14, "{what}: {time} s is less than the link takes");
        if time <= 0.4 {
            return;
        }
        times.push(time);
    }
    panic!("{what}: {times:?} s are far more than the link takes");
}

fn payload(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i / 256) as u8).collect::<Vec<u8>>().into()
}

async fn send(sender: &mut FrameSender, bytes: usize) {
    let payload = payload(bytes);
    // Two chunks, neither a whole number of pieces.
    let (front, back) = (payload.slice(..bytes / 3), payload.slice(bytes / 3..));
    sender.send(&(bytes as u32).to_le_bytes(), [front, back]).await.unwrap();
}

async fn read(receiver: &mut FrameReceiver) {
    let mut buffer = AlignedVec::new();
    let head = receiver.header(4, &mut buffer).await.unwrap().unwrap();
    let bytes = u32::from_le_bytes(head.try_into().unwrap()) as usize;
    let mut found = vec![0; bytes];
    receiver.payload(&mut found).await.unwrap();
    assert!(found == payload(bytes), "the payload changed");
}

/// The two ends of a stream, the opener's first.
struct Stream {
    here: (FrameSender, FrameReceiver),
    there: (FrameSender, FrameReceiver),
}

impl Stream {
    /// A stream that has carried something both ways, so that the connection has found its MTU and its pace.
    async fn open(from: &Connection, to: &Connection) -> Self {
        let mut here = from.open_stream(Priority::Normal).await.unwrap();
        let (there, ()) = tokio::join!(async { to.accept_stream().await.unwrap() }, send(&mut here.0, MB));
        let mut stream = Self { here, there };
        read(&mut stream.there.1).await;
        stream.down(MB).await;
        stream
    }

    async fn up(&mut self, bytes: usize) {
        tokio::join!(send(&mut self.here.0, bytes), read(&mut self.there.1));
    }

    async fn down(&mut self, bytes: usize) {
        tokio::join!(send(&mut self.there.0, bytes), read(&mut self.here.1));
    }
}

#[tokio::test]
async fn what_is_sent_and_what_is_read_take_the_time_of_the_link() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        // A stream that was there before the rate has it, too.
        let mut stream = Stream::open(&pair.opened, &pair.accepted).await;
        pair.client.set_link_rate(RATE);
        assert_time_of_two_megabytes("sent", async || stream.up(2 * MB).await).await;
        assert_time_of_two_megabytes("read", async || stream.down(2 * MB).await).await;
        assert_time_of_two_megabytes("sent in pieces", async || {
            let Stream { here: (sender, _), there: (_, receiver) } = &mut stream;
            let sending = async {
                let payload = payload(2 * MB);
                sender.begin(&(2 * MB as u32).to_le_bytes(), []).await.unwrap();
                for piece in [0..10, 10..MB, MB..2 * MB] {
                    sender.chunk(payload.slice(piece)).await.unwrap();
                }
                sender.end().unwrap();
            };
            tokio::join!(sending, read(receiver));
        })
        .await;
        assert_time_of_two_megabytes("sent and answered", async || {
            stream.up(MB).await;
            stream.down(MB).await;
        })
        .await;
        assert_time_of_two_megabytes("skipped", async || {
            let Stream { here: (_, receiver), there: (sender, _) } = &mut stream;
            tokio::join!(send(sender, 2 * MB), async {
                receiver.header(4, &mut AlignedVec::new()).await.unwrap().unwrap();
                receiver.skip_payload(2 * MB).await.unwrap();
            });
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn two_links_carry_the_same_bytes_at_once_and_each_both_ways() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        pair.client.set_link_rate(RATE);
        pair.server.set_link_rate(RATE);
        let mut stream = Stream::open(&pair.opened, &pair.accepted).await;
        assert_time_of_two_megabytes("over two links", async || stream.up(2 * MB).await).await;
        assert_time_of_two_megabytes("both ways at once", async || {
            let Stream { here: (up, down), there: (answer, request) } = &mut stream;
            tokio::join!(send(up, 2 * MB), read(request), send(answer, 2 * MB), read(down));
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn all_connections_of_an_endpoint_share_its_link() {
    bounded(async {
        let run = Run::new();
        let (server, address) = run.listen();
        let clients = [run.client(), run.client()];
        let mut streams = Vec::new();
        for client in &clients {
            let (accepted, opened) =
                tokio::join!(async { server.accept().await.unwrap().finish().await.unwrap() }, async {
                    client.connect(address, SERVER, LONG).await.unwrap()
                });
            streams.push(Stream::open(&opened, &accepted).await);
            // A second stream has no share of its own either.
            streams.push(Stream::open(&opened, &accepted).await);
            // Between the two connections, by a clone.
            server.clone().set_link_rate(RATE);
        }
        let [a, b, c, d] = &mut streams[..] else { panic!("two streams on each of two connections") };
        assert_time_of_two_megabytes("read from two clients", async || {
            tokio::join!(a.up(MB / 2), b.up(MB / 2), c.up(MB / 2), d.up(MB / 2));
        })
        .await;
        assert_time_of_two_megabytes("sent to two clients", async || {
            tokio::join!(a.down(MB / 2), b.down(MB / 2), c.down(MB / 2), d.down(MB / 2));
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_header_that_is_given_up_again_and_again_comes_when_the_link_has_carried_it() {
    bounded(async {
        let pair = pair(Limits::default()).await;
        let mut stream = Stream::open(&pair.opened, &pair.accepted).await;
        pair.server.set_link_rate(Some(LinkRate(100_000)));
        let (sender, receiver) = (&mut stream.here.0, &mut stream.there.1);
        let header: Vec<u8> = (0..4_000).map(|i| i as u8).collect();
        sender.send(&header, []).await.unwrap();
        let (mut buffer, mut given_up, start) = (AlignedVec::new(), 0, Instant::now());
        loop {
            let reading = receiver.header(4_000, &mut buffer);
            match tokio::time::timeout(Duration::from_millis(20), reading).await {
                Ok(done) => break assert_eq!(done.unwrap().unwrap(), header),
                Err(_) => given_up += 1,
            }
        }
        // 4,016 bytes take 0.32 s.
        assert!(given_up > 0 && start.elapsed() >= Duration::from_millis(310), "{:?}", start.elapsed());
        // Without a rate the next 5 MB take no 400 s.
        pair.server.set_link_rate(None);
        stream.up(5 * MB).await;
    })
    .await;
}

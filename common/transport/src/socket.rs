//! Reads a socket so that what comes stays in a core's caches until it is where it belongs; and of a lane what its peer sends
//! alone.
//!
//! Quinn reads 32 datagrams at once, copies each, and only then has them decrypted, and only then has anybody read their bytes.
//! A payload of large ones goes through memory that often. Given one at a time, each goes all the way before the next is read
//! over the same buffers.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

use crate::endpoint::canonical;

/// Bytes from which on datagrams are read one at a time. Smaller ones cost more by the number than by the byte.
const LARGE: usize = 16 << 10;
/// After so many reads without a large one as many datagrams are read at once as there are.
const SMALL_MAX: u32 = 64;

/// A socket whose large datagrams are read one at a time.
#[derive(Debug)]
struct OneByOne {
    socket: Arc<dyn AsyncUdpSocket>,
    /// Who alone is heard, if not everybody.
    peer: Option<SocketAddr>,
    /// Reads since the last that gave a large one.
    small: AtomicU32,
    /// What has been read is to be taken up before the next.
    is_others_turn: AtomicBool,
}

impl OneByOne {
    fn new(socket: Arc<dyn AsyncUdpSocket>, peer: Option<SocketAddr>) -> Arc<Self> {
        Arc::new(Self { socket, peer, small: SMALL_MAX.into(), is_others_turn: AtomicBool::new(false) })
    }
}

/// Makes a socket ready for an endpoint on this runtime that has few peers. Whoever drives it lets other tasks go on after each large
/// datagram.
///
/// # Errors
/// If the system refuses what quinn asks of it.
pub(crate) fn of_few(runtime: &dyn Runtime, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    Ok(OneByOne::new(runtime.wrap_udp_socket(socket)?, None))
}

/// The same for a socket that has been connected to this peer. What others sent just before, the kernel may still put there when
/// it has been emptied, and an endpoint that knows nothing of their connections would end them.
///
/// # Errors
/// If the system refuses what quinn asks of it.
pub(crate) fn of_one(
    runtime: &dyn Runtime,
    socket: UdpSocket,
    peer: SocketAddr,
) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    Ok(OneByOne::new(runtime.wrap_udp_socket(socket)?, Some(canonical(peer))))
}

impl AsyncUdpSocket for OneByOne {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.is_others_turn.swap(false, Ordering::Relaxed) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let small = self.small.load(Ordering::Relaxed);
        let most = if small < SMALL_MAX { 1 } else { buffers.len() };
        let received = ready!(self.socket.poll_recv(context, &mut buffers[..most], &mut metas[..most]))?;
        let metas = &mut metas[..received];
        // What the kernel has put together are still datagrams of this stride.
        let is_large = metas.iter().any(|meta| meta.stride.min(meta.len) >= LARGE);
        self.small.store(if is_large { 0 } else { small.saturating_add(1) }, Ordering::Relaxed);
        self.is_others_turn.store(is_large, Ordering::Relaxed);
        if let Some(peer) = self.peer {
            let foreign = metas.iter_mut().filter(|meta| canonical(meta.addr) != peer);
            // Of nothing quinn makes nothing.
            foreign.for_each(|meta| meta.len = 0);
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;

    use quinn::TokioRuntime;
    use quinn::udp::BATCH_SIZE;

    use super::*;

    /// What is read at once, and how often it was others' turn before.
    async fn read(socket: &dyn AsyncUdpSocket) -> (Vec<Vec<u8>>, u32) {
        let mut memory = vec![vec![0; 20_000]; BATCH_SIZE];
        let mut buffers: Vec<_> = memory.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut turns = 0;
        let read = |context: &mut Context<'_>| {
            let read = socket.poll_recv(context, &mut buffers, &mut metas);
            turns += u32::from(read.is_pending());
            read
        };
        let count = poll_fn(read).await.unwrap();
        let lengths = metas[..count].iter().map(|meta| meta.len);
        (lengths.zip(&memory).map(|(len, bytes)| bytes[..len].to_vec()).collect(), turns)
    }

    #[tokio::test]
    async fn large_datagrams_are_read_one_at_a_time_and_others_have_their_turn_between() {
        let [own, peer] = [0, 1].map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let place = own.local_addr().unwrap();
        own.set_nonblocking(true).unwrap();
        let socket = of_few(&TokioRuntime, own).unwrap();
        let send = |len, count| {
            (0..count).for_each(|i| assert_eq!(peer.send_to(&vec![i; len], place).unwrap(), len))
        };
        // Small ones first: all that are there.
        send(100, 3);
        let (all, turns) = read(&*socket).await;
        // The system says once that there is something to read.
        assert!(all == [vec![0; 100], vec![1; 100], vec![2; 100]] && turns <= 1);
        send(LARGE, 1);
        assert_eq!(read(&*socket).await.0.len(), 1);
        send(LARGE, 3);
        for i in 0..3 {
            let (one, turns) = read(&*socket).await;
            assert!(one == [vec![i; LARGE]] && turns >= 1, "{i} after {turns}");
        }
        // So are the small ones that come with them, but nobody has a turn after each.
        for i in 0..SMALL_MAX {
            send(100, 1);
            let (one, turns) = read(&*socket).await;
            assert!(one.len() == 1 && turns <= 2, "{i} after {turns}");
        }
        send(100, 3);
        assert_eq!(read(&*socket).await.0.len(), 3);
    }

    #[tokio::test]
    async fn of_a_stranger_nothing_is_heard_on_a_socket_that_is_a_peers() {
        let bound = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (own, peer, stranger) = (bound(), bound(), bound());
        let place = own.local_addr().unwrap();
        own.set_nonblocking(true).unwrap();
        // It is not connected, as for a moment when it is made.
        let socket = of_one(&TokioRuntime, own, peer.local_addr().unwrap()).unwrap();
        for (sender, bytes) in [(&peer, "one"), (&stranger, "lies"), (&peer, "two"), (&stranger, "more lies")]
        {
            sender.send_to(bytes.as_bytes(), place).unwrap();
        }
        let mut heard = Vec::new();
        while heard.len() < 4 {
            heard.extend(read(&*socket).await.0);
        }
        heard.retain(|bytes| !bytes.is_empty());
        assert_eq!(heard, [b"one", b"two"]);
    }
}

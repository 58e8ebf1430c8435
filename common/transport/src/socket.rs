//! Keeps from the socket of a lane what anybody but its peer has sent.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

use crate::endpoint::canonical;

/// A socket on which one peer alone is heard.
#[derive(Debug)]
struct OfOne {
    socket: Arc<dyn AsyncUdpSocket>,
    peer: SocketAddr,
}

/// Makes a socket that has been connected to this peer ready for an endpoint on this runtime. What others sent just before, the
/// kernel may still put there when it has been emptied, and an endpoint that knows nothing of their connections would end
/// them.
///
/// # Errors
/// If the system refuses what quinn asks of it.
pub(crate) fn of_one(
    runtime: &dyn Runtime,
    socket: UdpSocket,
    peer: SocketAddr,
) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    Ok(Arc::new(OfOne { socket: runtime.wrap_udp_socket(socket)?, peer: canonical(peer) }))
}

impl AsyncUdpSocket for OfOne {
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
        let received = ready!(self.socket.poll_recv(context, buffers, metas))?;
        let foreign = metas[..received].iter_mut().filter(|meta| canonical(meta.addr) != self.peer);
        // Of nothing quinn makes nothing.
        foreign.for_each(|meta| meta.len = 0);
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
        let mut received = 0;
        while received < 4 {
            let mut memory = [[0; 16]; BATCH_SIZE];
            let mut buffers = memory.each_mut().map(|buffer| IoSliceMut::new(buffer));
            let mut metas = [RecvMeta::default(); BATCH_SIZE];
            let count = poll_fn(|context| socket.poll_recv(context, &mut buffers, &mut metas)).await.unwrap();
            received += count;
            let lengths = metas[..count].iter().map(|meta| meta.len);
            heard.extend(lengths.zip(&memory).map(|(len, bytes)| bytes[..len].to_vec()));
        }
        heard.retain(|bytes| !bytes.is_empty());
        assert_eq!(heard, [b"one", b"two"]);
    }
}

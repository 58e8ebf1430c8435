//! Reads few datagrams from a socket at a time, so that the memory they come to stays in the nearest caches.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

use crate::endpoint::canonical;

/// Datagrams that are read at a time. Quinn offers room for 32, each at a place of its own: of large ones each push or pull
/// would go through memory that has left the caches since the last.
const AT_A_TIME: usize = 4;

/// A socket from which few datagrams are read at a time.
#[derive(Debug)]
struct Few {
    socket: Arc<dyn AsyncUdpSocket>,
    /// What comes from anybody else is as if it had not come.
    only: Option<SocketAddr>,
}

/// Makes a socket ready for an endpoint on this runtime.
///
/// # Errors
/// If the system refuses what quinn asks of it.
pub(crate) fn wrap(runtime: &dyn Runtime, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    Ok(Arc::new(Few { socket: runtime.wrap_udp_socket(socket)?, only: None }))
}

/// The same of a socket that has been connected to this peer. What others sent just before, the kernel may still put there
/// when it has been emptied; an endpoint that knows nothing of their connections would end them.
///
/// # Errors
/// As [`wrap`].
pub(crate) fn wrap_connected(
    runtime: &dyn Runtime,
    socket: UdpSocket,
    peer: SocketAddr,
) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    Ok(Arc::new(Few { socket: runtime.wrap_udp_socket(socket)?, only: Some(canonical(peer)) }))
}

impl AsyncUdpSocket for Few {
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
        let count = buffers.len().min(AT_A_TIME);
        let received = ready!(self.socket.poll_recv(context, &mut buffers[..count], &mut metas[..count]))?;
        if let Some(only) = self.only {
            let foreign = metas[..received].iter_mut().filter(|meta| canonical(meta.addr) != only);
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

    use super::*;

    #[tokio::test]
    async fn of_a_stranger_nothing_is_heard_on_a_socket_that_is_a_peers() {
        let bound = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (own, peer, stranger) = (bound(), bound(), bound());
        let place = own.local_addr().unwrap();
        own.set_nonblocking(true).unwrap();
        // It is not connected, as for a moment when it is made.
        let socket = wrap_connected(&TokioRuntime, own, peer.local_addr().unwrap()).unwrap();
        for (sender, bytes) in [(&peer, "one"), (&stranger, "lies"), (&peer, "two"), (&stranger, "more lies")]
        {
            sender.send_to(bytes.as_bytes(), place).unwrap();
        }
        let mut heard = Vec::new();
        let mut received = 0;
        while received < 4 {
            let mut memory = [[0; 16]; AT_A_TIME];
            let mut buffers = memory.each_mut().map(|buffer| IoSliceMut::new(buffer));
            let mut metas = [RecvMeta::default(); AT_A_TIME];
            let count = poll_fn(|context| socket.poll_recv(context, &mut buffers, &mut metas)).await.unwrap();
            received += count;
            let lengths = metas[..count].iter().map(|meta| meta.len);
            heard.extend(lengths.zip(&memory).map(|(len, bytes)| bytes[..len].to_vec()));
        }
        heard.retain(|bytes| !bytes.is_empty());
        assert_eq!(heard, [b"one", b"two"]);
    }
}

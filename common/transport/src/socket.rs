//! Reads few datagrams from a socket at a time, so that the memory they come to stays in the nearest caches.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

/// Datagrams that are read at a time. Quinn offers room for 32, each at a place of its own: of large ones each push or pull
/// would go through memory that has left the caches since the last.
const AT_A_TIME: usize = 4;

/// A socket from which few datagrams are read at a time.
#[derive(Debug)]
struct Few(Arc<dyn AsyncUdpSocket>);

/// Makes a socket ready for an endpoint on this runtime.
///
/// # Errors
/// If the system refuses what quinn asks of it.
pub(crate) fn wrap(runtime: &dyn Runtime, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    Ok(Arc::new(Few(runtime.wrap_udp_socket(socket)?)))
}

impl AsyncUdpSocket for Few {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = buffers.len().min(AT_A_TIME);
        self.0.poll_recv(context, &mut buffers[..count], &mut metas[..count])
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

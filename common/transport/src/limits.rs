//! Holds every limit of the transport, with its unit and default, and checks that they fit together.

use std::time::Duration;

/// One mebibyte in bytes.
const MIB: u64 = 1024 * 1024;
/// Quinn sends up to 10 datagrams of the MTU at once, and more than 65,507 bytes at once fail silently.
const MTU_MAX: u16 = 6_550;
/// The largest UDP payload.
const LOCAL_MTU_MAX: u16 = 65_507;
/// The smallest UDP payload that QUIC may use (RFC 9000, section 14).
const MTU_MIN: u16 = 1_200;
/// Smaller windows would stop a sender after every few packets.
const WINDOW_MIN: u64 = 65_536;
/// The largest number that QUIC can carry (RFC 9000, section 16).
const VARINT_MAX: u64 = (1 << 62) - 1;

/// What an endpoint may use and how long it waits. Start from the default and change what must differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at once, handshakes included; further ones are refused. Default 64.
    pub connections: usize,
    /// Handshakes that wait for the program to take them up; further ones are refused. Default 128.
    pub incoming: usize,
    /// Streams that a peer may have open at once on a connection. Default 64.
    pub streams: u32,
    /// Bytes that a peer may send on one stream ahead of the reader. Default 16 MiB.
    pub stream_window: u64,
    /// Bytes that a peer may send on one connection ahead of its readers. Default 64 MiB.
    pub receive_window: u64,
    /// Bytes written to a connection that the peer has not acknowledged yet. Default 64 MiB.
    pub send_window: u64,
    /// Bytes that all windows of all connections may come to; checked when an endpoint is made. Default 16 GiB.
    pub window_memory: u64,
    /// Bytes asked of the kernel for each of the socket's two buffers. It may give less. Default 4 MiB.
    pub socket_buffer: usize,
    /// Largest UDP payload in bytes to discover when sending. Default 6,500.
    pub mtu: u16,
    /// The same to peers on this machine, who are reached at a loopback address. Default 60,000.
    pub local_mtu: u16,
    /// A connection ends when nothing has come from the peer for this long. Keep-alives go out at a third of it.
    /// Default 10 s.
    pub idle: Duration,
    /// A handshake from outside must finish within this. Default 10 s.
    pub handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            incoming: 128,
            streams: 64,
            stream_window: 16 * MIB,
            receive_window: 64 * MIB,
            send_window: 64 * MIB,
            window_memory: 16 * 1024 * MIB,
            socket_buffer: 4 * 1024 * 1024,
            mtu: 6_500,
            local_mtu: 60_000,
            idle: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
        }
    }
}

/// Why a set of limits cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// The windows of all connections together may take more memory than allowed.
    #[error(
        "{connections} connections with windows of {} MiB each could hold {} MiB, and the limit window_memory is {} MiB; \
         lower receive_window, send_window or connections, or raise window_memory",
        per_connection / MIB, total / MIB, limit / MIB
    )]
    Memory {
        /// The connections allowed.
        connections: usize,
        /// Bytes of both windows of one connection.
        per_connection: u64,
        /// Bytes of all of them.
        total: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A stream may hold more than its connection.
    #[error("stream_window is {stream} bytes, more than receive_window with {connection}")]
    StreamWindow {
        /// Bytes of a stream.
        stream: u64,
        /// Bytes of a connection.
        connection: u64,
    },
    /// A value is out of its range.
    #[error("{name} is {found}, and must be from {least} to {most}")]
    Range {
        /// The field.
        name: &'static str,
        /// What it is.
        found: u64,
        /// The least it may be.
        least: u64,
        /// The most it may be.
        most: u64,
    },
}

impl Limits {
    /// Checks every field, and that the windows of all connections together stay within `window_memory`.
    /// An endpoint does this when it is made; a program may do it earlier, on its flags.
    ///
    /// # Errors
    /// Names the field at fault, what it is and what it may be.
    pub fn check(&self) -> Result<(), LimitsError> {
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        in_range("connections", self.connections as u64, 1, u32::MAX.into())?;
        in_range("incoming", self.incoming as u64, 1, u32::MAX.into())?;
        in_range("streams", self.streams.into(), 1, u32::MAX.into())?;
        in_range("stream_window", self.stream_window, WINDOW_MIN, VARINT_MAX)?;
        in_range("receive_window", self.receive_window, WINDOW_MIN, VARINT_MAX)?;
        in_range("send_window", self.send_window, WINDOW_MIN, VARINT_MAX)?;
        in_range("mtu", self.mtu.into(), MTU_MIN.into(), MTU_MAX.into())?;
        in_range("local_mtu", self.local_mtu.into(), MTU_MIN.into(), LOCAL_MTU_MAX.into())?;
        in_range("idle in milliseconds", milliseconds(self.idle), 100, 3_600_000)?;
        in_range("handshake in milliseconds", milliseconds(self.handshake), 100, 3_600_000)?;
        if self.stream_window > self.receive_window {
            return Err(LimitsError::StreamWindow {
                stream: self.stream_window,
                connection: self.receive_window,
            });
        }
        self.check_window_memory()
    }

    fn check_window_memory(&self) -> Result<(), LimitsError> {
        let per_connection = self.receive_window.saturating_add(self.send_window);
        let total = per_connection.saturating_mul(self.connections as u64);
        if total > self.window_memory {
            let (connections, limit) = (self.connections, self.window_memory);
            return Err(LimitsError::Memory { connections, per_connection, total, limit });
        }
        Ok(())
    }
}

fn in_range(name: &'static str, found: u64, least: u64, most: u64) -> Result<(), LimitsError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(LimitsError::Range { name, found, least, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_holds_and_each_contradiction_is_named() {
        Limits::default().check().unwrap();
        let cases = [
            (Limits { connections: 0, ..Limits::default() }, "connections is 0, and must be from 1"),
            (
                Limits { connections: 129, ..Limits::default() },
                "could hold 16512 MiB, and the limit window_memory is 16384",
            ),
            (Limits { mtu: 6_551, ..Limits::default() }, "mtu is 6551, and must be from 1200 to 6550"),
            (
                Limits { local_mtu: 65_508, ..Limits::default() },
                "local_mtu is 65508, and must be from 1200 to",
            ),
            (Limits { stream_window: 128 * MIB, ..Limits::default() }, "more than receive_window"),
            (Limits { send_window: 0, ..Limits::default() }, "send_window is 0"),
            (Limits { receive_window: u64::MAX, ..Limits::default() }, "receive_window is"),
            (Limits { idle: Duration::ZERO, ..Limits::default() }, "idle in milliseconds is 0"),
        ];
        for (limits, expected) in cases {
            let text = limits.check().unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
        Limits { connections: 128, ..Limits::default() }.check().unwrap();
    }
}

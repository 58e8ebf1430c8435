//! Carries frames between authenticated processes over QUIC, knowing nothing of what they mean.
//!
//! This is the only crate that names quinn or rustls. It owns endpoints, TLS identities, socket buffers, MTU,
//! stream priorities, byte meters and the framing of streams.
//!
//! # Waiting
//!
//! Nothing here waits for ever. Connecting, resolving, finishing a handshake and shutting down take a deadline or
//! a limit. Waiting on a stream or for one ends with the connection, and a connection whose peer has vanished
//! ends after [`Limits::idle`]. A peer that is alive but silent keeps its connection by keep-alives. Against such a one
//! a stream may be given a patience ([`FrameSender::set_patience`], [`FrameReceiver::set_patience`]), which bounds how
//! long a frame may stand still midway; whoever awaits an *answer*, or a stream, must put its own deadline around the
//! wait. Each method says whether it may be dropped.
//!
//! # Slow links
//!
//! [`Endpoint::set_link_rate`] emulates a link of a given rate between this process and all others. Deadlines must then
//! allow for the time that the bytes take.

#[cfg(target_endian = "big")]
compile_error!(
    "Windlass sends floats as they lie in memory, in little-endian order; this target is big-endian"
);

mod aside;
mod authority;
pub mod bare;
mod connection;
mod endpoint;
mod error;
mod frame;
mod identity;
mod lanes;
mod limits;
mod pacing;
mod pool;
mod role;
mod socket;
mod tls;
mod turns;

pub use aside::Aside;
pub use authority::RunAuthority;
pub use connection::{Connection, Meter, Priority};
pub use endpoint::{Endpoint, Incoming, resolve};
pub use error::{ConnectionLost, TransportError};
pub use frame::{FRAME_VERSION, FrameError, FramePart, FrameReceiver, FrameSender, PREFIX_BYTES};
pub use identity::{Identity, IdentityError};
pub use limits::{Limits, LimitsError};
pub use pool::{Pool, PooledFloats, bytes_of};
pub use role::{Role, RoleError};
pub use turns::{keep_to_a_core, own_cores};

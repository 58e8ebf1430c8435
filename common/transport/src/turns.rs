//! Keeps threads that take turns on one core, whose caches have what they hand to each other.
//!
//! The system moves a thread that waits for a core to another that has nothing to do. That is right for a while, but then the
//! ones that wait for it and wake it run there, too, or the bytes pass from core to core. Does nothing where the system is not
//! Linux, or does not let it.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many cores the calling thread may run on, if it may have all of their time: a group of processes with a quota shares cores with
/// others, who would be put on the same.
pub fn own_cores() -> Option<usize> {
    #[cfg(target_os = "linux")]
    {
        let may = rustix::thread::sched_getaffinity(None).ok()?.count() as usize;
        let has = std::thread::available_parallelism().ok()?.get();
        (has == may).then_some(may)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// From now on the calling thread, and those that it starts, run on one core alone: the `nth` of those they may run on, which
/// are counted anew where there are fewer.
pub fn keep_to_a_core(nth: usize) {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity};

        let Ok(may) = sched_getaffinity(None) else { return };
        let cores = (0..CpuSet::MAX_CPU).filter(|&core| may.is_set(core));
        if let Some(core) = cores.cycle().nth(nth) {
            keep_to(core);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = nth;
}

#[cfg(target_os = "linux")]
fn keep_to(core: usize) {
    let mut only = rustix::thread::CpuSet::new();
    only.set(core);
    // If the system does not let it, what follows is only slower.
    let _ = rustix::thread::sched_setaffinity(None, &only);
}

/// Where the peer of a lane runs.
#[derive(Debug)]
pub(crate) struct Turns {
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "only Linux tells where datagrams come from")
    )]
    socket: UdpSocket,
    /// Where whoever opened the lane may run, and so may the lane.
    #[cfg(target_os = "linux")]
    may: rustix::thread::CpuSet,
    /// Where it was found to last.
    core: AtomicU32,
}

impl Turns {
    /// With whom this socket is connected to; of others the system does not say it.
    ///
    /// # Errors
    /// If the system has no other handle to it.
    pub(crate) fn with_peer_of(socket: &UdpSocket) -> io::Result<Self> {
        Ok(Self {
            socket: socket.try_clone()?,
            #[cfg(target_os = "linux")]
            may: rustix::thread::sched_getaffinity(None)?,
            core: AtomicU32::new(u32::MAX),
        })
    }

    /// Moves the calling thread to the core from which the last datagram has come (`SO_INCOMING_CPU`, socket(7)), if it is one on which
    /// this process may run.
    pub(crate) fn follow(&self) {
        #[cfg(target_os = "linux")]
        {
            let Ok(core) = rustix::net::sockopt::socket_incoming_cpu(&self.socket) else { return };
            let is_there = self.core.swap(core, Ordering::Relaxed) == core;
            if !is_there
                && (core as usize) < rustix::thread::CpuSet::MAX_CPU
                && self.may.is_set(core as usize)
            {
                keep_to(core as usize);
            }
        }
        #[cfg(not(target_os = "linux"))]
        self.core.store(u32::MAX, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use rustix::thread::{CpuSet, sched_getaffinity};

    use super::*;

    fn may_run_on() -> Vec<usize> {
        let may = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|&core| may.is_set(core)).collect()
    }

    struct Lane {
        socket: UdpSocket,
        turns: Turns,
        peer: UdpSocket,
    }

    impl Lane {
        fn open() -> Self {
            let [socket, peer] = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
            socket.connect(peer.local_addr().unwrap()).unwrap();
            peer.connect(socket.local_addr().unwrap()).unwrap();
            Self { turns: Turns::with_peer_of(&socket).unwrap(), socket, peer }
        }

        /// The peer runs on this core and sends something.
        fn hear_from(&self, core: usize) {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    keep_to(core);
                    self.peer.send(b"here").unwrap();
                });
            });
            self.socket.recv(&mut [0; 8]).unwrap();
        }
    }

    #[test]
    fn each_core_is_kept_to_in_turn() {
        let all = may_run_on();
        // If this one has a quota nothing is said.
        assert!(own_cores().is_none_or(|cores| cores == all.len()));
        for nth in 0..2 * all.len() + 1 {
            let kept = std::thread::spawn(move || {
                keep_to_a_core(nth);
                assert_eq!(own_cores(), Some(1));
                (may_run_on(), std::thread::spawn(may_run_on).join().unwrap())
            });
            let expected = vec![all[nth % all.len()]];
            assert_eq!(kept.join().unwrap(), (expected.clone(), expected), "{nth} of {all:?}");
        }
    }

    #[test]
    fn who_follows_a_peer_is_where_it_sends_from() {
        let lane = Lane::open();
        for core in may_run_on() {
            lane.hear_from(core);
            lane.turns.follow();
            assert_eq!(may_run_on(), [core]);
        }
    }

    #[test]
    fn nobody_is_followed_to_a_core_that_one_may_not_run_on() {
        let all = may_run_on();
        let (first, others) = all.split_first().unwrap();
        keep_to(*first);
        let lane = Lane::open();
        for &core in others {
            lane.hear_from(core);
            lane.turns.follow();
            assert_eq!(may_run_on(), [*first]);
        }
    }
}

//! Decides what the end of a process means for its run.

use std::process::ExitStatus;

use windlass_common::exit::Exit;
use windlass_transport::Role;

/// What the end of a process means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was to be expected.
    Fine,
    /// It came at a bad time, and the run does not need the process any more.
    Remark,
    /// The run is complete.
    Complete,
    /// Start it again.
    Restart,
    /// The process was told why by the coordinator, or has lost it. A moment later it is clear which: look again then.
    Wait,
    /// The run cannot go on.
    Fatal(Exit),
}

/// What is known of the run when a process ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// The run is complete.
    pub(super) is_over: bool,
    /// The worker has left in good order.
    pub(super) has_left: bool,
    /// The coordinator has had time to say what it knows.
    pub(super) has_waited: bool,
    /// There are checkpoints from which the run can go on without what a server had.
    pub(super) survives: bool,
}

/// What the end of the process in this role means.
pub(super) fn verdict(role: Role, status: ExitStatus, known: Known) -> Verdict {
    let is = |exit: Exit| status.code() == Some(i32::from(exit.code()));
    let may_be_told_why = (is(Exit::Run) || is(Exit::Network)) && !known.has_waited;
    match role {
        Role::Server(id) if id.0 == 0 && status.success() => Verdict::Complete,
        _ if status.success() => Verdict::Fine,
        _ if known.is_over || known.has_left => Verdict::Remark,
        _ if may_be_told_why => Verdict::Wait,
        Role::Observer => Verdict::Fatal(Exit::Run),
        Role::Server(_) if !known.survives => Verdict::Fatal(Exit::Run),
        // The coordinator has ended the run.
        Role::Server(id) if id.0 == 0 && is(Exit::Run) => Verdict::Fatal(Exit::Run),
        // It would say the same again.
        _ if is(Exit::Usage) => Verdict::Fatal(Exit::Usage),
        _ if is(Exit::Input) => Verdict::Fatal(Exit::Input),
        _ => Verdict::Restart,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use windlass_common::ids::{ServerId, WorkerId};

    use super::*;

    const KNOWN: Known = Known { is_over: false, has_left: false, has_waited: false, survives: false };
    const FIRST: Role = Role::Server(ServerId(0));
    const SERVER: Role = Role::Server(ServerId(1));
    const WORKER: Role = Role::Worker(WorkerId(0));

    fn of(role: Role, status: i32, known: Known) -> Verdict {
        // A small number is a signal, as in the shell a large one less 128.
        verdict(role, ExitStatus::from_raw(status), known)
    }

    fn code(code: i32) -> i32 {
        code << 8
    }

    #[test]
    fn a_worker_that_dies_is_started_again_unless_it_would_say_the_same() {
        assert_eq!(of(WORKER, 9, KNOWN), Verdict::Restart);
        assert_eq!(of(WORKER, code(101), KNOWN), Verdict::Restart);
        assert_eq!(of(WORKER, code(2), KNOWN), Verdict::Fatal(Exit::Usage));
        assert_eq!(of(WORKER, code(3), KNOWN), Verdict::Fatal(Exit::Input));
        assert_eq!(of(WORKER, 0, KNOWN), Verdict::Fine);
    }

    #[test]
    fn whoever_was_told_to_go_is_not_blamed() {
        for status in [code(4), code(5)] {
            assert_eq!(of(WORKER, status, KNOWN), Verdict::Wait);
            assert_eq!(of(SERVER, status, KNOWN), Verdict::Wait);
            assert_eq!(of(WORKER, status, Known { has_waited: true, ..KNOWN }), Verdict::Restart);
            assert_eq!(of(FIRST, status, Known { has_waited: true, ..KNOWN }), Verdict::Fatal(Exit::Run));
        }
    }

    #[test]
    fn with_checkpoints_a_server_is_started_again_unless_it_would_say_the_same() {
        let known = Known { survives: true, ..KNOWN };
        let waited = Known { has_waited: true, ..known };
        for role in [FIRST, SERVER] {
            for status in [9, 15, code(6), code(101), code(130)] {
                assert_eq!(of(role, status, known), Verdict::Restart);
            }
            assert_eq!(of(role, code(2), known), Verdict::Fatal(Exit::Usage));
            assert_eq!(of(role, code(3), known), Verdict::Fatal(Exit::Input));
            assert_eq!(of(role, code(4), known), Verdict::Wait);
            assert_eq!(of(role, code(4), waited), Verdict::Restart);
            assert_eq!(of(role, 9, Known { is_over: true, ..known }), Verdict::Remark);
        }
        // A follower has lost the coordinator; the coordinator has ended the run.
        assert_eq!(of(SERVER, code(5), waited), Verdict::Restart);
        assert_eq!(of(FIRST, code(5), waited), Verdict::Fatal(Exit::Run));
        assert_eq!(of(FIRST, 0, known), Verdict::Complete);
    }

    #[test]
    fn without_checkpoints_a_server_cannot_be_replaced() {
        for status in [9, 15, code(101), code(3)] {
            assert_eq!(of(SERVER, status, KNOWN), Verdict::Fatal(Exit::Run));
            assert_eq!(of(FIRST, status, KNOWN), Verdict::Fatal(Exit::Run));
        }
        assert_eq!(of(FIRST, 0, KNOWN), Verdict::Complete);
        assert_eq!(of(SERVER, 0, KNOWN), Verdict::Fine);
    }

    #[test]
    fn a_run_that_is_complete_needs_nobody() {
        let over = Known { is_over: true, ..KNOWN };
        for status in [9, code(5), code(101)] {
            assert_eq!(of(WORKER, status, over), Verdict::Remark);
            assert_eq!(of(SERVER, status, over), Verdict::Remark);
            assert_eq!(of(WORKER, status, Known { has_left: true, ..KNOWN }), Verdict::Remark);
        }
    }
}

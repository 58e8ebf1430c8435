//! Tells the system's scheduler that this process computes, and that nobody waits at a screen for what it does next.

/// From now on a thread of this process that is woken does not put off whichever runs, as Linux does with batch jobs
/// (`SCHED_BATCH`, sched(7)). Where workers and servers share their cores, a sender then writes all of its datagrams before the
/// receiver takes them up together, and not each in turn. Threads that are started later do the same. Does nothing where the
/// process has been given another policy than the usual one, or where the system has no such thing.
pub(crate) fn put_nobody_off() {
    #[cfg(target_os = "linux")]
    {
        use preempt_rt::sched::{Pid, Scheduler, SchedulerParams, get_scheduler, set_scheduler};

        let own = Pid::current_thread();
        if matches!(get_scheduler(own), Ok(Scheduler::SCHED_NORMAL)) {
            // If the system does not let it, what follows is only slower.
            let _ = set_scheduler(own, Scheduler::SCHED_BATCH, SchedulerParams { priority: 0 });
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use preempt_rt::sched::{Pid, Scheduler, get_scheduler};

    #[test]
    fn threads_that_are_started_later_put_nobody_off_either() {
        let policy = || get_scheduler(Pid::current_thread()).unwrap();
        let found = std::thread::spawn(move || {
            super::put_nobody_off();
            (policy(), std::thread::spawn(policy).join().unwrap())
        });
        assert_eq!(found.join().unwrap(), (Scheduler::SCHED_BATCH, Scheduler::SCHED_BATCH));
    }
}

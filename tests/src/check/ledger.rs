//! Follows the numbers of each worker's pushes on one shard: taken in order, settled once, refused without effect.

use std::collections::BTreeMap;

use windlass_common::ids::{Incarnation, Sequence, WorkerId};
use windlass_common::plan::{Membership, Mode, Plan, Stale};
use windlass_common::wire::{Member, Order, Outcome, Record};

use crate::cluster::{Asked, Entry, History, Told};
use crate::sim::FORGED;

/// What one event has led to.
#[derive(Default)]
struct Group<'a> {
    asked: Option<&'a Asked>,
    order: Option<&'a Order>,
    /// Who came in another life than before, and who went.
    members: Option<(&'a [Member], &'a [WorkerId])>,
    records: Vec<&'a Record>,
    told: Vec<(u64, &'a Told)>,
}

/// What is known of each worker.
#[derive(Default)]
struct Worker {
    is_member: bool,
    incarnation: Incarnation,
    next: u64,
    /// Pushes that are held, with the life that made them.
    held: BTreeMap<u64, Incarnation>,
}

/// Verifies one shard.
///
/// # Panics
/// With a sentence, if something does not hold.
pub(super) fn verify(plan: &Plan, shard: usize, history: &History) {
    let mut workers: BTreeMap<WorkerId, Worker> = BTreeMap::new();
    let mut group = Group::default();
    let mut is_final = false;
    for entry in history.entries() {
        match entry {
            Entry::Asked(asked) => group.asked = Some(asked),
            Entry::Ordered(order) => group.order = Some(order),
            Entry::Members { came, went } => group.members = Some((came, went)),
            Entry::Ended(_) | Entry::Observed { .. } => {}
            Entry::Record(record) => group.records.push(record),
            Entry::Told { session, what } => group.told.push((session.0, what)),
            Entry::Handled { .. } => {
                let group = std::mem::take(&mut group);
                let what = format!("shard {shard}");
                assert!(!is_final || group.records.is_empty(), "{what} changes after its result was taken");
                is_final |= matches!(group.order, Some(Order::Finalize));
                follow(&what, &mut workers, &group);
                within_limits(&what, plan, &workers);
            }
        }
    }
}

fn follow(what: &str, workers: &mut BTreeMap<WorkerId, Worker>, group: &Group<'_>) {
    if let Some((came, went)) = group.members {
        for worker in went {
            workers.entry(*worker).or_default().is_member = false;
        }
        for member in came {
            let worker = workers.entry(member.worker).or_default();
            worker.is_member = true;
            worker.incarnation = worker.incarnation.max(member.incarnation);
        }
    }
    let mut pushed = None;
    if let Some(asked) = group.asked {
        let worker = workers.entry(asked.worker).or_default();
        let is_heard = worker.is_member && worker.incarnation == asked.incarnation;
        let is_forged = asked.session.0 >= FORGED;
        if is_forged || !is_heard {
            let is_refused =
                matches!(group.told.as_slice(), [(session, Told::Rejected)] if *session == asked.session.0);
            assert!(
                is_refused && group.records.is_empty(),
                "{what} must refuse {asked:?} without effect, and said {:?}",
                group.told
            );
            return;
        }
        if let Some((sequence, ..)) = asked.push {
            pushed = taken(what, worker, asked, sequence, group);
        }
    }
    for record in &group.records {
        let worker = workers.entry(record.worker).or_default();
        let number = record.sequence.0;
        let is_void = record.outcome == Outcome::Void;
        if let Some(life) = worker.held.remove(&number) {
            assert_eq!(life, record.incarnation, "{what} settles what another life has pushed: {record:?}");
            let is_redone = group.members.is_some();
            assert!(!is_void || is_redone, "{what} makes a held push void for no reason: {record:?}");
        } else if pushed == Some((record.worker, number)) {
            pushed = None;
            worker.next += 1;
        } else {
            let is_settling = matches!(
                group.order,
                Some(Order::Settle { worker, void_missing: true, next, .. })
                    if *worker == record.worker && record.sequence < next.sequence
            );
            assert!(is_settling && is_void, "{what} settles a push that it does not have: {record:?}");
            assert_eq!(number, worker.next, "{what} leaves out a push of {}: {record:?}", record.worker);
            worker.next += 1;
        }
    }
    assert_eq!(pushed, None, "{what} has taken a push and says nothing of it: {:?}", group.told);
}

/// A push of a worker that is heard; returns it if it has to be settled at once.
fn taken(
    what: &str,
    worker: &mut Worker,
    asked: &Asked,
    sequence: Sequence,
    group: &Group<'_>,
) -> Option<(WorkerId, u64)> {
    let said = group.told.iter().filter(|(session, _)| *session == asked.session.0).map(|(_, told)| *told);
    let is_refused = said.clone().any(|told| *told == Told::Rejected);
    let is_held = said.clone().any(|told| *told == Told::Held(sequence));
    let is_settled = said.clone().any(|told| matches!(told, Told::Settled(s, _) if *s == sequence));
    let own = group.records.iter().any(|r| (r.worker, r.sequence) == (asked.worker, sequence));
    if sequence.0 > worker.next {
        assert!(is_refused && !own, "{what} must refuse {asked:?}: push {} comes first", worker.next);
        return None;
    }
    if sequence.0 < worker.next {
        if let Some(life) = worker.held.get_mut(&sequence.0) {
            assert!(is_held, "{what} must say that it holds {asked:?}, and said {:?}", group.told);
            // The push that is held is the one that came first; its record names that life.
            let _ = life;
        } else {
            assert!(
                (is_settled || is_refused) && !own,
                "{what} must say what has become of {asked:?}, and said {:?}",
                group.told
            );
        }
        return None;
    }
    // What is wrong with the pull is found out after the push has been taken.
    if is_refused && !is_held && !own {
        return None;
    }
    if is_held {
        worker.held.insert(sequence.0, asked.incarnation);
        worker.next += 1;
        return None;
    }
    Some((asked.worker, sequence.0))
}

/// What is held is within the limits of the plan.
fn within_limits(what: &str, plan: &Plan, workers: &BTreeMap<WorkerId, Worker>) {
    let (each, all) = match &plan.mode {
        Mode::Sync { .. } => (1, plan.cluster.workers_max()),
        Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => (0, 0),
        // What is dealt anew may for a moment be held twice, of who has gone and of who has its client now.
        Mode::Fedavg(fedavg) if plan.cluster.membership != Membership::Fixed => {
            (fedavg.asked, 2 * fedavg.asked)
        }
        Mode::Fedavg(fedavg) => (fedavg.asked, fedavg.asked),
        Mode::Softsync { buffer, stale: Stale::Kept, .. } | Mode::Fedbuff { buffer, .. } => {
            (*buffer, u32::MAX)
        }
        Mode::Softsync { buffer, stale: Stale::Late, .. } => (*buffer + 1, u32::MAX),
    };
    let mut sum = 0;
    for (id, worker) in workers {
        let held = worker.held.len();
        assert!(held <= each as usize, "{what} holds {held} pushes of {id}, and at most {each} are possible");
        sum += held;
    }
    assert!(sum <= all as usize, "{what} holds {sum} pushes, and at most {all} are possible");
}

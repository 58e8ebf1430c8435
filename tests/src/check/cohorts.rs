//! Compares who took part in each step, on every shard and by the coordinator's word.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ClientId, WorkerId};
use windlass_common::plan::{Fedavg, Membership, Mode};
use windlass_common::wire::{Entry, Member, Outcome, Stop};

use crate::cluster::{History, Run};

/// Who took part in each version of a shard's values.
fn applied(history: &History) -> Vec<BTreeSet<Entry>> {
    let mut by_version: BTreeMap<u64, BTreeSet<Entry>> = BTreeMap::new();
    for r in history.records() {
        if let Outcome::Applied { version, .. } = r.outcome {
            let entry = Entry { client: r.client, worker: r.worker, sequence: r.sequence };
            by_version.entry(version.0).or_default().insert(entry);
        }
    }
    by_version.into_values().collect()
}

/// Verifies the cohorts of a run. Where steps or rounds are common to all, returns who took part in each.
///
/// # Panics
/// With a sentence, if something does not hold.
pub(super) fn verify(run: &Run) -> Option<Vec<Vec<(WorkerId, ClientId)>>> {
    let is_complete = run.stop == Stop::Completed;
    let is_elastic = run.plan.cluster.membership != Membership::Fixed;
    let whole: Vec<Vec<BTreeSet<Entry>>> = run.histories.iter().map(applied).collect();
    let size = match &run.plan.mode {
        // Who comes and goes is looked at below.
        Mode::Sync { .. } if is_elastic => 0,
        Mode::Sync { backup } => (run.plan.cluster.workers - backup) as usize,
        Mode::Softsync { buffer, .. } | Mode::Fedbuff { buffer, .. } => *buffer as usize,
        Mode::Fedavg(_) => 0,
        Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => 1,
    };
    for (shard, cohorts) in whole.iter().enumerate() {
        for (number, cohort) in cohorts.iter().enumerate() {
            let right = size == 0 || cohort.len() == size;
            assert!(right, "version {} of shard {shard} is made of {cohort:?}, not of {size}", number + 1);
        }
    }
    if size == 1 && !matches!(run.plan.mode, Mode::Sync { .. } | Mode::Softsync { .. } | Mode::Fedbuff { .. })
    {
        return None;
    }
    let longest = whole.iter().max_by_key(|cohorts| cohorts.len()).cloned().unwrap_or_default();
    for (shard, cohorts) in whole.iter().enumerate() {
        assert!(longest.starts_with(cohorts), "shard {shard} has other cohorts than another");
        assert!(!is_complete || cohorts.len() == longest.len(), "shard {shard} ends behind another");
    }
    if run.plan.mode != (Mode::Sync { backup: 0 }) || is_elastic {
        for (number, (step, _)) in (0_u64..).zip(&run.closed) {
            assert_eq!(step.0, number, "steps are closed one after the other");
        }
        let logged = run.closed.iter().map(|(_, cohort)| cohort.iter().copied().collect::<BTreeSet<_>>());
        let logged: Vec<BTreeSet<Entry>> = logged.filter(|cohort| !cohort.is_empty()).collect();
        assert!(logged.starts_with(&longest), "the shards have applied what the coordinator did not close");
    }
    match &run.plan.mode {
        Mode::Sync { backup } if is_elastic => {
            members_take_part(run, *backup as usize);
            // Steps that were abandoned count as steps.
            let cohorts =
                run.closed.iter().map(|(_, cohort)| cohort.iter().copied().collect::<BTreeSet<_>>());
            let mut left = longest.len();
            let until_the_end = cohorts.take_while(|cohort| {
                let goes_on = left > 0;
                left -= usize::from(goes_on && !cohort.is_empty());
                goes_on
            });
            Some(until_the_end.map(|cohort| who(&cohort)).collect())
        }
        Mode::Sync { .. } => Some(longest.iter().map(who).collect()),
        Mode::Fedavg(fedavg) => {
            rounds(run, fedavg, is_complete);
            let cohorts = run.closed.iter().map(|(_, cohort)| cohort.iter().map(|e| (e.worker, e.client)));
            Some(cohorts.map(Iterator::collect).collect())
        }
        _ => None,
    }
}

/// Each cohort is of those who take part when it is closed; and who was in the cohort before, and has taken part in the
/// same life ever since, is in it, but for so many.
fn members_take_part(run: &Run, backup: usize) {
    let mut before: Option<&Vec<Entry>> = None;
    for (number, (step, cohort)) in run.closed.iter().enumerate() {
        let began = |closed: &usize| *closed <= number;
        let terms: Vec<_> = run.terms.iter().filter(|(closed, _)| began(closed)).collect();
        let Some((_, members)) = terms.last() else {
            panic!("step {step} is closed before anybody takes part")
        };
        for entry in cohort {
            let is_member = members.iter().any(|m| m.worker == entry.worker);
            assert!(is_member, "step {step} counts {entry:?}, who takes no part: {members:?}");
        }
        // The terms since the step before was closed, and the one that it was closed in.
        let since = terms.iter().rposition(|(closed, _)| *closed < number).unwrap_or(0);
        let stayed = |entry: &&Entry| {
            let life =
                |members: &[Member]| members.iter().find(|m| m.worker == entry.worker).map(|m| m.incarnation);
            let first = life(&terms[since].1);
            first.is_some() && terms[since..].iter().all(|(_, members)| life(members) == first)
        };
        let expected: Vec<&Entry> = before.into_iter().flatten().filter(stayed).collect();
        let missing = expected.iter().filter(|e| !cohort.iter().any(|c| c.worker == e.worker)).count();
        assert!(missing <= backup, "step {step} is closed with {cohort:?}, and {expected:?} are there");
        before = Some(cohort);
    }
}

fn who(cohort: &BTreeSet<Entry>) -> Vec<(WorkerId, ClientId)> {
    cohort.iter().map(|e| (e.worker, e.client)).collect()
}

fn rounds(run: &Run, fedavg: &Fedavg, is_complete: bool) {
    assert!(
        run.opened.len() == run.closed.len() || !is_complete && run.opened.len() == run.closed.len() + 1,
        "{} rounds were opened and {} closed",
        run.opened.len(),
        run.closed.len()
    );
    for ((step, tasks), (closed, cohort)) in run.opened.iter().zip(&run.closed) {
        assert_eq!(step, closed, "rounds are closed in the order in which they were opened");
        let clients: BTreeSet<ClientId> = cohort.iter().map(|e| e.client).collect();
        assert_eq!(clients.len(), cohort.len(), "round {step} counts a client twice: {cohort:?}");
        assert_eq!(tasks.len(), fedavg.asked as usize, "so many are asked in round {step}");
        for entry in cohort {
            let was_asked = tasks.iter().any(|t| (t.client, t.worker) == (entry.client, entry.worker));
            assert!(was_asked, "round {step} counts {entry:?}, who was not asked");
        }
        let possible = fedavg.quorum..=fedavg.cohort;
        let is_possible = cohort.is_empty() || possible.contains(&(cohort.len() as u32));
        assert!(is_possible, "round {step} is closed with {}, {possible:?} are possible", cohort.len());
        assert!(cohort.is_sorted(), "round {step} is reduced out of order: {cohort:?}");
    }
    for record in run.histories.iter().flat_map(History::records) {
        if matches!(record.outcome, Outcome::Applied { .. }) {
            let entry = Entry { client: record.client, worker: record.worker, sequence: record.sequence };
            let closed = run.closed.get(record.step.index());
            let counts = closed.is_some_and(|(_, cohort)| cohort.contains(&entry));
            assert!(counts, "{record:?} counts in a round other than its own");
        }
    }
}

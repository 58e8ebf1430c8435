//! Opens federated rounds, and decides when one is over and with whom.

use std::collections::BTreeSet;

use windlass_common::cohort::{self, Hosts};
use windlass_common::ids::{ClientId, Step, WorkerId};
use windlass_common::plan::{Fedavg, Hosting, Plan};
use windlass_common::wire::{Entry, Task};

use crate::Time;

/// The rounds of a run.
#[derive(Debug)]
pub(crate) struct Rounds {
    fedavg: Fedavg,
    seed: u64,
    clients: u32,
    sizes: Vec<u32>,
    open: Option<Open>,
    closed: u64,
    concluded: bool,
    /// Whether a round has been opened since the workers joined; those that have just done so still load their data.
    is_warm: bool,
    /// Workers that were away for too long: nobody waits for their clients.
    given_up: BTreeSet<WorkerId>,
}

/// The round that is open.
#[derive(Debug)]
struct Open {
    tasks: Vec<Task>,
    /// Clients that will not push.
    dropped: BTreeSet<ClientId>,
    deadline: Option<Time>,
}

impl Rounds {
    pub(crate) fn new(plan: &Plan, fedavg: &Fedavg, closed: u64, concluded: bool) -> Self {
        Self {
            fedavg: fedavg.clone(),
            seed: plan.seed,
            clients: plan.clients.count,
            sizes: plan.clients.sizes.clone(),
            open: None,
            closed,
            concluded,
            is_warm: false,
            given_up: BTreeSet::new(),
        }
    }

    /// Whether no further round is to be opened.
    pub(crate) fn is_concluded(&self) -> bool {
        self.concluded
    }

    /// Rounds closed.
    pub(crate) fn closed(&self) -> u64 {
        self.closed
    }

    /// Whether no round is open and none will be.
    pub(crate) fn are_over(&self) -> bool {
        self.open.is_none() && (self.concluded || self.closed >= self.fedavg.rounds)
    }

    /// The open round is the last.
    pub(crate) fn conclude(&mut self) {
        self.concluded = true;
    }

    /// Whether the end came before the planned one.
    pub(crate) fn ended_early(&self) -> bool {
        self.are_over() && self.closed < self.fedavg.rounds
    }

    /// Whether a round is to be opened as soon as somebody can take part in it.
    pub(crate) fn is_none_open(&self) -> bool {
        self.open.is_none() && !self.are_over()
    }

    /// Opens the next round, if there is one and somebody to take part in it: whom it asks.
    pub(crate) fn open(
        &mut self,
        now: Time,
        hosts: &Hosts,
        members: &[WorkerId],
    ) -> Option<(Step, Vec<Task>)> {
        if self.are_over() || members.is_empty() {
            return None;
        }
        let Fedavg { sampler, asked, hosting, deadline_ms, .. } = &self.fedavg;
        let chosen = cohort::choose(sampler, self.seed, self.closed, self.clients, &self.sizes, *asked);
        let tasks = cohort::deal(*hosting, &chosen, &self.sizes, hosts, members);
        // The time of the first round begins with its first word.
        let deadline = deadline_ms.filter(|_| self.is_warm).map(|ms| after(now, ms));
        let is_away = |w: WorkerId| self.given_up.contains(&w) || !members.contains(&w);
        let in_vain = tasks.iter().filter(|t| is_away(t.worker)).map(|t| t.client).collect();
        self.open = Some(Open { tasks: tasks.clone(), dropped: in_vain, deadline });
        self.is_warm = true;
        Some((Step(self.closed), tasks))
    }

    /// Deals the clients of the open round whose workers have gone to others; they are trained from the start. Whose data
    /// nobody else has will not push. Returns whom the round asks now, if that has changed.
    pub(crate) fn deal_anew(&mut self, hosts: &Hosts, members: &[WorkerId]) -> Option<(Step, Vec<Task>)> {
        let open = self.open.as_mut().filter(|_| !members.is_empty())?;
        let is_member = |worker: WorkerId| members.binary_search(&worker).is_ok();
        let mut loads = vec![0_usize; members.len()];
        for task in &open.tasks {
            if let Ok(member) = members.binary_search(&task.worker) {
                loads[member] += 1;
            }
        }
        let mut has_changed = false;
        for task in open.tasks.iter_mut().filter(|t| !is_member(t.worker)) {
            if open.dropped.contains(&task.client) {
                continue;
            }
            let host = hosts.of(task.client);
            if self.fedavg.hosting == Hosting::Fixed && !is_member(host) {
                open.dropped.insert(task.client);
                continue;
            }
            task.worker = match self.fedavg.hosting {
                Hosting::Fixed => host,
                Hosting::Balanced => {
                    let least = (0..loads.len()).min_by_key(|&w| (loads[w], w)).expect("there is a member");
                    loads[least] += 1;
                    members[least]
                }
            };
            has_changed = true;
        }
        has_changed.then(|| (Step(self.closed), open.tasks.clone()))
    }

    /// A worker was away for too long. From now on its clients are asked in vain.
    pub(crate) fn give_up(&mut self, worker: WorkerId) {
        if self.given_up.insert(worker)
            && let Some(open) = &mut self.open
        {
            let its = open.tasks.iter().filter(|t| t.worker == worker).map(|t| t.client);
            open.dropped.extend(its);
        }
    }

    /// A worker has come back; from the next round on its clients are waited for again.
    pub(crate) fn take_back(&mut self, worker: WorkerId) {
        self.given_up.remove(&worker);
    }

    /// Somebody has pushed in the open round, or dropped out of it.
    pub(crate) fn heard(&mut self, now: Time) {
        if let (Some(open), Some(ms)) = (&mut self.open, self.fedavg.deadline_ms) {
            open.deadline.get_or_insert(after(now, ms));
        }
    }

    /// When the open round is over at the latest.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.open.as_ref()?.deadline
    }

    /// A client will not push in this round. Whether that is news: it was asked, of this worker, and the round is open.
    pub(crate) fn dropped(&mut self, client: ClientId, worker: WorkerId, step: Step) -> bool {
        if step == Step(self.closed)
            && let Some(open) = &mut self.open
            && open.tasks.contains(&Task { client, worker })
        {
            return open.dropped.insert(client);
        }
        false
    }

    /// Of these pushes, those of the workers whose task they were: a client may have been dealt to another since.
    pub(crate) fn of_their_own(&self, mut pushes: Vec<Entry>) -> Vec<Entry> {
        let tasks = self.open.as_ref().map_or(&[][..], |open| &open.tasks);
        pushes.retain(|e| tasks.iter().any(|t| (t.client, t.worker) == (e.client, e.worker)));
        pushes
    }

    /// With which pushes the open round is to be closed; `None` if it goes on. `complete` are those that every shard has,
    /// `is_lost` says which workers are away.
    ///
    /// A round is over when its cohort is complete, when its deadline has passed, or when nobody is left to wait for; the
    /// clients of a worker that is away may come back, and are given up only where there is a quorum without them. With
    /// fewer pushes than the quorum it is abandoned: closed with none.
    pub(crate) fn verdict(
        &self,
        now: Time,
        mut complete: Vec<Entry>,
        is_lost: impl Fn(WorkerId) -> bool,
    ) -> Option<Vec<Entry>> {
        let open = self.open.as_ref()?;
        let Fedavg { cohort, quorum, .. } = self.fedavg;
        if complete.len() >= cohort as usize {
            complete.truncate(cohort as usize);
            return Some(complete);
        }
        let has_quorum = complete.len() >= quorum as usize;
        let has_pushed = |client: ClientId| complete.binary_search_by_key(&client, |e| e.client).is_ok();
        let mut missing =
            open.tasks.iter().filter(|t| !has_pushed(t.client) && !open.dropped.contains(&t.client));
        let is_over = open.deadline.is_some_and(|deadline| now >= deadline)
            || missing.clone().next().is_none()
            || (has_quorum && missing.all(|t| is_lost(t.worker)));
        match (is_over, has_quorum) {
            (false, _) => None,
            (true, true) => Some(complete),
            (true, false) => Some(Vec::new()),
        }
    }

    /// The open round is closed.
    pub(crate) fn close(&mut self) {
        self.open = None;
        self.closed += 1;
    }
}

fn after(now: Time, ms: u64) -> Time {
    Time(now.0.saturating_add(ms.saturating_mul(1000)))
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::Sequence;
    use windlass_common::plan::{Hosting, LocalWork, Sampler, Weights};

    use super::*;

    fn rounds(cohort: u32, asked: u32, quorum: u32, deadline_ms: Option<u64>) -> Rounds {
        let fedavg = Fedavg {
            rounds: 2,
            cohort,
            asked,
            quorum,
            deadline_ms,
            sampler: Sampler::RoundRobin,
            weights: Weights::Examples,
            hosting: Hosting::Fixed,
            local: LocalWork::default(),
        };
        let mut rounds = Rounds {
            fedavg,
            seed: 1,
            clients: 6,
            sizes: vec![1; 6],
            open: None,
            closed: 0,
            concluded: false,
            is_warm: false,
            given_up: BTreeSet::new(),
        };
        open(&mut rounds, 0).unwrap();
        rounds
    }

    const MEMBERS: [WorkerId; 2] = [WorkerId(0), WorkerId(1)];

    fn open(rounds: &mut Rounds, now: u64) -> Option<(Step, Vec<Task>)> {
        rounds.open(Time(now), &Hosts::dealt(6, &MEMBERS), &MEMBERS)
    }

    fn pushed(clients: &[u32]) -> Vec<Entry> {
        let entry = |&c: &u32| Entry { client: ClientId(c), worker: WorkerId(c % 2), sequence: Sequence(0) };
        clients.iter().map(entry).collect()
    }

    fn verdict(rounds: &Rounds, now: u64, clients: &[u32]) -> Option<usize> {
        rounds.verdict(Time(now), pushed(clients), |_| false).map(|cohort| cohort.len())
    }

    #[test]
    fn a_round_is_over_with_its_cohort_or_at_its_deadline() {
        let mut rounds = rounds(3, 4, 2, Some(5));
        assert_eq!(rounds.deadline(), None, "nobody has been heard");
        rounds.heard(Time(0));
        assert_eq!(verdict(&rounds, 4_999, &[0, 1]), None);
        assert_eq!(verdict(&rounds, 0, &[0, 1, 3]), Some(3), "the fourth is not waited for");
        assert_eq!(verdict(&rounds, 5_000, &[0, 1]), Some(2));
        assert_eq!(verdict(&rounds, 5_000, &[0]), Some(0), "without a quorum it is abandoned");
        rounds.heard(Time(1_000));
        assert_eq!(rounds.deadline(), Some(Time(5_000)), "it is the first word that counts");
        rounds.close();
        open(&mut rounds, 7_000).unwrap();
        assert_eq!(rounds.deadline(), Some(Time(12_000)), "later rounds begin when they are opened");
    }

    #[test]
    fn nobody_is_waited_for_who_will_not_push() {
        let mut rounds = rounds(3, 3, 2, None);
        rounds.dropped(ClientId(2), WorkerId(0), Step(0));
        rounds.dropped(ClientId(1), WorkerId(0), Step(0)); // Not its client.
        rounds.dropped(ClientId(1), WorkerId(1), Step(1)); // Not this round.
        assert_eq!(verdict(&rounds, 0, &[0]), None);
        assert_eq!(verdict(&rounds, 0, &[0, 1]), Some(2));
        rounds.dropped(ClientId(1), WorkerId(1), Step(0));
        assert_eq!(verdict(&rounds, 0, &[0]), Some(0));
    }

    #[test]
    fn who_is_away_is_given_up_only_with_a_quorum() {
        let rounds = rounds(3, 3, 2, None);
        let is_lost = |worker| worker == WorkerId(0);
        assert_eq!(rounds.verdict(Time(0), pushed(&[1]), is_lost), None);
        assert_eq!(rounds.verdict(Time(0), pushed(&[0, 1]), is_lost).map(|c| c.len()), Some(2));
    }

    #[test]
    fn who_is_given_up_is_asked_in_vain_until_it_is_back() {
        let mut rounds = rounds(3, 3, 2, None);
        rounds.give_up(WorkerId(0));
        assert_eq!(
            verdict(&rounds, 0, &[1]),
            Some(0),
            "clients 0 and 2 are never heard, and one is no quorum"
        );
        rounds.close();
        rounds.take_back(WorkerId(0));
        open(&mut rounds, 0).unwrap();
        assert_eq!(verdict(&rounds, 0, &[3]), None, "clients 4 and 5 are waited for");
    }

    #[test]
    fn rounds_end_as_planned_or_earlier() {
        let mut rounds = rounds(3, 3, 3, None);
        rounds.close();
        assert_eq!(open(&mut rounds, 0).unwrap().0, Step(1));
        rounds.conclude();
        assert!(!rounds.are_over());
        rounds.close();
        assert!(rounds.are_over() && !rounds.ended_early());
        let mut early = self::rounds(3, 3, 3, None);
        early.conclude();
        early.close();
        assert!(early.ended_early() && open(&mut early, 0).is_none());
    }

    #[test]
    fn clients_of_who_has_gone_are_dealt_anew() {
        let mut rounds = rounds(3, 3, 3, None);
        assert_eq!(rounds.deal_anew(&Hosts::dealt(6, &MEMBERS), &MEMBERS), None);
        assert_eq!(rounds.deal_anew(&Hosts::dealt(6, &MEMBERS), &[]), None, "there is nobody to take them");
        let mut hosts = Hosts::dealt(6, &MEMBERS);
        hosts.deal_anew(&MEMBERS[1..]);
        let (step, tasks) = rounds.deal_anew(&hosts, &MEMBERS[1..]).unwrap();
        assert_eq!((step, tasks.len()), (Step(0), 3));
        assert!(tasks.iter().all(|t| t.worker == WorkerId(1)));
        assert_eq!(verdict(&rounds, 0, &[0, 1]), None, "client 2 is waited for");

        let mut own = self::rounds(3, 3, 3, None);
        assert_eq!(own.deal_anew(&Hosts::own(6), &MEMBERS[..1]), None);
        assert_eq!(
            verdict(&own, 0, &[0, 2]),
            Some(0),
            "nobody else has the data of client 1, and two are no quorum"
        );
    }
}

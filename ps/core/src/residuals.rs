//! Knows what codecs have left out of pushes, as workers gave it for checkpoints, and of whose pushes that still holds.
//!
//! A residual is as of one push of its client. When another one is taken it holds no longer: only the worker knows what that
//! has left out, and what is here would be sent a second time. Nothing is better than that, so it is not used any more,
//! and is dropped with the next checkpoint unless a worker gives it anew.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use windlass_common::ids::{ClientId, Sequence, WorkerId};

/// What is left out of the pushes of one client: a value for each of a shard's, its slices end to end.
pub type Residual = Arc<Vec<f32>>;

/// All that a shard knows to be left out, by the client and the worker that gave it.
pub type Residuals = BTreeMap<(ClientId, WorkerId), Residual>;

/// Pushes of one client, the first and the last of some.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: Sequence,
    last: Sequence,
}

/// Pushes of one client without another worker's between them.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    worker: WorkerId,
    first: Sequence,
}

/// What one shard knows.
#[derive(Debug)]
pub(crate) struct Table {
    /// Whether each worker has its own residual of a client; otherwise it is the client's, whoever gave it.
    is_by_worker: bool,
    residuals: Residuals,
    /// Pushes taken since the last checkpoint was cut.
    since: BTreeMap<(ClientId, WorkerId), Span>,
    /// Pushes that belong to the checkpoint that is being taken, of clients whose residuals have not been given for it.
    stale: BTreeMap<(ClientId, WorkerId), Span>,
    /// Who has pushed for each client in turn, if the residuals are the clients': from the last before the last checkpoint on.
    stretches: BTreeMap<ClientId, Vec<Stretch>>,
    /// Who was the last of them before the checkpoint that is being taken. What another worker has of the client is older.
    newest: BTreeMap<ClientId, WorkerId>,
}

fn of(client: ClientId) -> RangeInclusive<(ClientId, WorkerId)> {
    (client, WorkerId(0))..=(client, WorkerId(u32::MAX))
}

impl Table {
    pub(crate) fn new(is_by_worker: bool, residuals: Residuals) -> Self {
        let (since, stale, stretches, newest) = Default::default();
        Self { is_by_worker, residuals, since, stale, stretches, newest }
    }

    /// All of it, as part of a checkpoint.
    pub(crate) fn image(&self) -> Residuals {
        self.residuals.clone()
    }

    /// Values in all of it.
    pub(crate) fn values(&self) -> u64 {
        self.residuals.values().map(|residual| residual.len() as u64).sum()
    }

    /// A push has been taken in.
    pub(crate) fn taken(&mut self, client: ClientId, worker: WorkerId, sequence: Sequence) {
        let span = self.since.entry((client, worker)).or_insert(Span { first: sequence, last: sequence });
        span.last = sequence;
        if !self.is_by_worker {
            let stretches = self.stretches.entry(client).or_default();
            if stretches.last().is_none_or(|stretch| stretch.worker != worker) {
                stretches.push(Stretch { worker, first: sequence });
            }
        }
    }

    /// A push that was taken in is as if it had never come: its client is trained anew.
    pub(crate) fn undone(&mut self, client: ClientId, worker: WorkerId, sequence: Sequence) {
        if self.since.get(&(client, worker)).is_some_and(|s| s.first == sequence) {
            self.since.remove(&(client, worker));
        }
        if let Some(stretches) = self.stretches.get_mut(&client) {
            stretches.retain(|stretch| (stretch.worker, stretch.first) != (worker, sequence));
        }
    }

    /// A checkpoint is cut, with each worker's pushes before the one that `next` names.
    pub(crate) fn cut(&mut self, next: impl Fn(WorkerId) -> Sequence) {
        self.newest.clear();
        for (&client, stretches) in &mut self.stretches {
            if let Some(newest) = stretches.iter().rposition(|stretch| stretch.first < next(stretch.worker)) {
                stretches.drain(..newest);
                self.newest.insert(client, stretches[0].worker);
            }
        }
        for ((client, worker), span) in std::mem::take(&mut self.since) {
            let next = next(worker);
            if span.first < next {
                self.stale.insert((client, worker), span);
            }
            if span.last >= next {
                let first = span.first.max(next);
                self.since.insert((client, worker), Span { first, ..span });
            }
        }
    }

    /// A worker gives a residual as of that checkpoint. Where another worker has pushed for the client since, what the first
    /// has is of no use.
    pub(crate) fn renew(&mut self, client: ClientId, worker: WorkerId, residual: Residual) {
        if self.is_by_worker {
            self.stale.remove(&(client, worker));
        } else if self.newest.get(&client).is_some_and(|newest| *newest != worker) {
            return;
        } else {
            self.stale.extract_if(of(client), |_, _| true).for_each(drop);
            self.residuals.extract_if(of(client), |_, _| true).for_each(drop);
        }
        self.residuals.insert((client, worker), residual);
    }

    /// Every worker has given what it has: what has not been given anew is lost.
    pub(crate) fn complete(&mut self) {
        for (client, worker) in std::mem::take(&mut self.stale).into_keys() {
            match self.is_by_worker {
                true => drop(self.residuals.remove(&(client, worker))),
                false => self.residuals.extract_if(of(client), |_, _| true).for_each(drop),
            }
        }
    }

    /// The checkpoint comes to nothing. What has been given for it holds as well as any.
    pub(crate) fn give_up(&mut self) {
        for (key, Span { first, last }) in std::mem::take(&mut self.stale) {
            let span = self.since.entry(key).or_insert(Span { first, last });
            span.first = first;
        }
    }

    /// What has been left out of a client's pushes, for a life of a worker that goes on with its push `next`; nothing where
    /// the client has pushed since, but for pushes that are made again.
    pub(crate) fn find(&self, client: ClientId, worker: WorkerId, next: Sequence) -> Option<&Residual> {
        let still_holds = |whose: (ClientId, WorkerId)| {
            let is_made_again = whose.1 == worker && self.since.get(&whose).is_some_and(|s| s.first >= next);
            !self.stale.contains_key(&whose) && (is_made_again || !self.since.contains_key(&whose))
        };
        if self.is_by_worker {
            let whose = (client, worker);
            return self.residuals.get(&whose).filter(|_| still_holds(whose));
        }
        let pushed = self.stale.range(of(client)).chain(self.since.range(of(client)));
        let (_, residual) = self.residuals.range(of(client)).next()?;
        pushed.map(|(&whose, _)| whose).all(still_holds).then_some(residual)
    }

    /// The clients whose residuals a worker has given.
    pub(crate) fn given_by(&self, worker: WorkerId) -> impl Iterator<Item = ClientId> + '_ {
        self.residuals.keys().filter(move |(_, giver)| *giver == worker).map(|(client, _)| *client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: [WorkerId; 2] = [WorkerId(0), WorkerId(1)];
    const C: ClientId = ClientId(5);

    fn residual(value: f32) -> Residual {
        Arc::new(vec![value])
    }

    fn table(is_by_worker: bool) -> Table {
        Table::new(is_by_worker, BTreeMap::from([((C, W[0]), residual(1.0))]))
    }

    fn found(table: &Table, worker: WorkerId, next: u64) -> Option<f32> {
        table.find(C, worker, Sequence(next)).map(|residual| residual[0])
    }

    #[test]
    fn it_holds_until_its_client_pushes_again() {
        for is_by_worker in [true, false] {
            let mut table = table(is_by_worker);
            assert_eq!(found(&table, W[0], 3), Some(1.0));
            table.taken(C, W[0], Sequence(3));
            assert_eq!(found(&table, W[0], 4), None, "what push 3 has left out is not known");
            assert_eq!(found(&table, W[0], 3), Some(1.0), "push 3 is made again");
            table.undone(C, W[0], Sequence(3));
            assert_eq!(found(&table, W[0], 4), Some(1.0), "push 3 came to nothing");
        }
    }

    #[test]
    fn it_is_its_clients_or_its_workers() {
        assert_eq!(found(&table(true), W[1], 0), None);
        let mut table = table(false);
        assert_eq!(found(&table, W[1], 0), Some(1.0), "whoever trains the client has it");
        table.taken(C, W[1], Sequence(0));
        assert_eq!(found(&table, W[0], 3), None);
        table.cut(|_| Sequence(1));
        table.renew(C, W[1], residual(2.0));
        table.complete();
        assert_eq!(table.image(), BTreeMap::from([((C, W[1]), residual(2.0))]), "it is one");
        assert_eq!((found(&table, W[0], 3), table.given_by(W[1]).count()), (Some(2.0), 1));
    }

    #[test]
    fn of_a_client_that_has_moved_only_the_last_worker_gives() {
        for order in [[0, 1], [1, 0]] {
            let mut table = table(false);
            table.taken(C, W[0], Sequence(3));
            table.taken(C, W[1], Sequence(0));
            // This one comes after the checkpoint.
            table.taken(C, W[0], Sequence(4));
            table.cut(|worker| Sequence(if worker == W[0] { 4 } else { 1 }));
            for giver in order {
                table.renew(C, W[giver], residual(2.0 + giver as f32));
            }
            table.complete();
            assert_eq!(table.image(), BTreeMap::from([((C, W[1]), residual(3.0))]), "{order:?}");
            // Nobody has pushed for it since, in the next: what the first still has is older all the same.
            table.undone(C, W[0], Sequence(4));
            table.cut(|_| Sequence(4));
            table.renew(C, W[0], residual(2.0));
            table.complete();
            assert_eq!(table.image(), BTreeMap::from([((C, W[1]), residual(3.0))]), "{order:?}");
            // It moves back.
            table.taken(C, W[0], Sequence(4));
            table.cut(|_| Sequence(5));
            table.renew(C, W[0], residual(2.5));
            table.complete();
            assert_eq!(table.image(), BTreeMap::from([((C, W[0]), residual(2.5))]), "{order:?}");
        }
        // The last one is gone, and with it what it had.
        let mut table = table(false);
        table.taken(C, W[0], Sequence(3));
        table.taken(C, W[1], Sequence(0));
        table.cut(|_| Sequence(4));
        table.renew(C, W[0], residual(2.0));
        table.complete();
        assert_eq!(table.image(), BTreeMap::new());
    }

    #[test]
    fn a_checkpoint_has_what_was_given_for_it_and_what_still_holds() {
        let other = (ClientId(7), W[0]);
        let mut table = table(true);
        table.residuals.insert(other, residual(4.0));
        table.taken(C, W[0], Sequence(3));
        table.taken(C, W[0], Sequence(8));
        table.cut(|_| Sequence(8));
        assert_eq!(found(&table, W[0], 8), None, "it is yet to be given");
        table.renew(C, W[0], residual(2.0));
        assert_eq!(found(&table, W[0], 8), Some(2.0));
        assert_eq!(found(&table, W[0], 9), None, "push 8 is later than the checkpoint");
        table.complete();
        assert_eq!(table.image(), BTreeMap::from([((C, W[0]), residual(2.0)), (other, residual(4.0))]));
        // The next one nobody answers.
        table.cut(|_| Sequence(9));
        table.complete();
        assert_eq!(table.image(), BTreeMap::from([(other, residual(4.0))]));
    }

    #[test]
    fn a_checkpoint_that_comes_to_nothing_changes_nothing() {
        let mut table = table(true);
        table.taken(C, W[0], Sequence(3));
        table.cut(|_| Sequence(4));
        table.taken(C, W[0], Sequence(4));
        table.give_up();
        assert_eq!((found(&table, W[0], 5), found(&table, W[0], 4)), (None, None));
        assert_eq!(found(&table, W[0], 3), Some(1.0));
    }
}

//! Keeps what a server has of shards from one life of the run to the next, and starts their threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use windlass_checkpoint::Store;
use windlass_common::exit::Exit;
use windlass_common::ids::{ServerId, ShardId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Begins, Envelope, Seats};
use windlass_process::{Failure, OrExit};
use windlass_ps_core::coordinator::Copy;
use windlass_ps_core::replica::Standby;
use windlass_ps_core::shard::{Effect, Shard};
use windlass_transport::{Aside, Endpoint};

use crate::crew::Crew;
use crate::gradient::Gradient;
use crate::meter::Meters;
use crate::replication::{self, Route};
use crate::restore;
use crate::shard::{self, ShardLink, ShardMessage};
use crate::standby::StandbyLink;

/// A copy of a shard, while no thread has it.
enum Kept {
    Primary(Box<Shard<Gradient>>),
    Standby(Box<Standby<Gradient>>),
}

impl Kept {
    /// The shard, if it holds all that its primary has shown.
    fn sound(&self) -> Option<(&Shard<Gradient>, bool)> {
        match self {
            Self::Primary(shard) => Some((shard, true)),
            Self::Standby(standby) => standby.full().map(|shard| (shard, false)),
        }
    }
}

/// What a server has of shards.
pub(crate) struct Host {
    id: ServerId,
    kept: BTreeMap<ShardId, Kept>,
    primaries: Vec<(ShardId, JoinHandle<Shard<Gradient>>)>,
    feeding: Option<Aside>,
    /// Threads that help every shard of which this server is the primary.
    crew: Option<Arc<Crew>>,
    pub(crate) meters: Arc<Meters>,
}

/// The shards of a server in one life of the run, as its sessions see them.
pub(crate) struct Hosted {
    pub(crate) seats: Vec<Seats>,
    pub(crate) shards: Vec<(ShardId, ShardLink)>,
    pub(crate) standbys: Vec<(ShardId, StandbyLink)>,
}

/// How one life begins, as the coordinator has told it.
pub(crate) struct Life<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) envelope: Envelope,
    pub(crate) seats: Vec<Seats>,
    pub(crate) begins: &'a Begins,
    pub(crate) store: &'a Arc<dyn Store>,
}

impl Life<'_> {
    /// The shards that this server is the primary of.
    pub(crate) fn of(&self, server: ServerId) -> Vec<ShardId> {
        let all = (0..).map(ShardId).zip(&self.seats);
        all.filter(|(_, seats)| seats.primary == server).map(|(shard, _)| shard).collect()
    }
}

impl Host {
    pub(crate) fn new(id: ServerId, crew: Option<Arc<Crew>>) -> Self {
        let (kept, primaries, feeding) = Default::default();
        Self { id, kept, primaries, feeding, crew, meters: Arc::default() }
    }

    /// The copies that may be gone on with.
    pub(crate) fn copies(&self) -> Vec<Copy> {
        let copy = |(&shard, kept): (&ShardId, &Kept)| {
            let (of, is_primary) = kept.sound()?;
            Some(Copy {
                shard,
                lineage: of.lineage(),
                is_primary,
                state: of.state(),
                concluded: of.is_concluded(),
                closed: of.closed().to_vec(),
            })
        };
        self.kept.iter().filter_map(copy).collect()
    }

    /// Starts the shards of a life: with the copies that are here, those of a checkpoint, or the initial values. Copies that
    /// are not gone on with are let go. `tell` brings to the coordinator what a shard says.
    ///
    /// # Errors
    /// If a checkpoint cannot be read, the system gives no thread, or the copy that is to be gone on with is not here.
    pub(crate) fn start<T: FnMut(ShardMessage) + Send + 'static>(
        &mut self,
        life: &Life<'_>,
        mut tell: impl FnMut(ShardId) -> T,
    ) -> Result<Hosted, Failure> {
        let mut kept = std::mem::take(&mut self.kept);
        let mut shards = Vec::new();
        for id in life.of(self.id) {
            let mut early = Vec::new();
            let mut shard = shard_of(life, id, kept.remove(&id), &mut early)?;
            self.crew.iter().for_each(|crew| shard.lend(crew.clone()));
            let of = (Arc::clone(&self.meters), life.plan.heterogeneity.link_rate.is_some());
            let (link, thread) = shard::spawn(id, shard, early, of, tell(id)).or_exit(Exit::System)?;
            self.primaries.push((id, thread));
            shards.push((id, link));
        }
        drop(kept);
        let mut standbys = Vec::new();
        let plan = Arc::new(life.plan.clone());
        for (id, seats) in (0..).map(ShardId).zip(&life.seats) {
            if seats.standby == Some(self.id) {
                let standby = Standby::new(life.envelope.run, life.envelope.lineage, id);
                let link = StandbyLink::new(Arc::clone(&plan), id, standby);
                standbys.push((id, link.or_exit(Exit::Input)?));
            }
        }
        Ok(Hosted { seats: life.seats.clone(), shards, standbys })
    }

    /// Feeds the standbys of this server's shards, wherever they are.
    ///
    /// # Errors
    /// If the system does not give what that needs.
    pub(crate) fn feed(
        &mut self,
        hosted: &Hosted,
        addresses: &[String],
        (endpoint, envelope): (&Endpoint, Envelope),
        silence: std::time::Duration,
    ) -> Result<(), Failure> {
        let route = |(shard, link): &(ShardId, ShardLink)| {
            let standby = hosted.seats.get(shard.index())?.standby?;
            let address = addresses.get(standby.index())?.clone();
            let route = Route { envelope, shard: *shard, standby, address, silence };
            Some((route, link.clone()))
        };
        let routes: Vec<_> = hosted.shards.iter().filter_map(route).collect();
        if !routes.is_empty() {
            self.feeding = Some(replication::start(endpoint, routes).or_exit(Exit::System)?);
        }
        Ok(())
    }

    /// Ends the threads of a life and keeps what they have, if it may be needed again.
    pub(crate) fn stop(&mut self, hosted: &Hosted) {
        self.feeding = None;
        hosted.shards.iter().for_each(|(_, link)| link.stop());
        for (id, link) in &hosted.standbys {
            if let Some(standby) = link.stop() {
                self.kept.insert(*id, Kept::Standby(Box::new(standby)));
            }
        }
        for (id, thread) in self.primaries.drain(..) {
            if let Ok(shard) = thread.join() {
                self.kept.insert(id, Kept::Primary(Box::new(shard)));
            }
        }
    }
}

fn shard_of(
    life: &Life<'_>,
    id: ShardId,
    kept: Option<Kept>,
    early: &mut Vec<Effect>,
) -> Result<Shard<Gradient>, Failure> {
    let (plan, Envelope { run, lineage, .. }) = (life.plan, life.envelope);
    match life.begins {
        Begins::Anew => Shard::new(plan, run, lineage, id).or_exit(Exit::Input),
        Begins::Checkpoint(number) => {
            let image = restore::image(life.store, *number, plan, id).or_exit(Exit::Input)?;
            Shard::restored(plan, run, lineage, id, image).or_exit(Exit::Input)
        }
        Begins::Copies { logged } => {
            let shard = match kept {
                Some(Kept::Primary(shard)) => Some(*shard),
                Some(Kept::Standby(standby)) => standby.into_full(),
                None => None,
            };
            let missing = || anyhow::anyhow!("the coordinator goes on with a copy of {id} that is not here");
            let shard = shard.ok_or_else(missing).or_exit(Exit::Run)?;
            let logged = logged.get(id.index()).copied().unwrap_or_default();
            Ok(shard.into_lineage(lineage, logged, early))
        }
    }
}

//! Starts the servers and workers of a run, each with what it needs to know.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use windlass_common::exit::Exit;
use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::plan::Plan;
use windlass_transport::{Identity, Role};

use super::Beginning;
use crate::children::{Children, Exited, Program};
use crate::failure::{Failure, Outcome};
use crate::identities::Identities;
use crate::lookout::Lookout;
use crate::programs::Programs;
use crate::run_directory::{self, PLAN_FILE};

pub(super) const COORDINATOR: Role = Role::Server(ServerId(0));
/// What a server says before the address at which it listens.
const LISTENS: &str = "listening on ";
/// Where a server listens that has no port yet.
const ANY_PORT: &str = "127.0.0.1:0";
/// A server says where it listens before it does anything that takes time.
const LISTENING: Duration = Duration::from_secs(10);

/// The processes of a run and what is needed to start them.
pub(super) struct Crew {
    pub(super) children: Children,
    identities: Identities,
    programs: Programs,
    directory: PathBuf,
    connect_deadline: u64,
    /// Where checkpoints are kept, unless in the run directory.
    checkpoints: Option<String>,
    /// Where the data are.
    data: String,
    /// Address of server 0, once it is known.
    coordinator: String,
    /// What the other servers say first: where they listen.
    first_lines: BTreeMap<Role, oneshot::Receiver<String>>,
    /// While it is there, others can look at the run.
    lookout: Option<Lookout>,
}

impl Crew {
    /// Makes the identities and starts nothing yet.
    ///
    /// # Errors
    /// If files cannot be written.
    pub(super) fn new(
        plan: &Plan,
        directory: &Path,
        programs: Programs,
        connect_deadline: u64,
        beginning: &Beginning,
    ) -> Outcome<Self> {
        Ok(Self {
            children: Children::new(directory)?,
            identities: Identities::make(&plan.name, plan.cluster.servers, plan.cluster.workers_max())?,
            programs,
            directory: directory.to_owned(),
            connect_deadline,
            checkpoints: beginning.checkpoints.clone(),
            data: plan.data.path.clone(),
            coordinator: String::new(),
            first_lines: BTreeMap::new(),
            lookout: None,
        })
    }

    pub(super) fn observer(&self) -> &Identity {
        &self.identities.observer
    }

    /// Everybody has joined, and nobody needs the identity files any more, but for who is started again or may join later.
    pub(super) fn all_have_joined(&self) {
        self.identities.withdraw();
    }

    /// How to start a worker that joins the run: the command, with an identity that is there as long as the run is.
    ///
    /// # Errors
    /// If the identity cannot be written.
    pub(super) fn joining(&self, worker: WorkerId) -> Outcome<String> {
        let identity = self.identities.file(Role::Worker(worker))?;
        let (worker, coordinator) = (self.programs.worker.display(), &self.coordinator);
        Ok(format!("{worker} --coordinator {coordinator} --identity {}", identity.display()))
    }

    pub(super) fn coordinator(&self) -> &str {
        &self.coordinator
    }

    /// Starts server 0 and waits until it listens.
    ///
    /// # Errors
    /// If it cannot be started, ends, or does not listen in time.
    pub(super) async fn start_coordinator(&mut self) -> Outcome<()> {
        let first_line = self.launch(COORDINATOR)?;
        let exited = tokio::select! {
            line = tokio::time::timeout(LISTENING, first_line) => {
                let line = line.map(Result::ok).map_err(|_| {
                    Failure::new(Exit::Run, format!("server 0 did not listen within {} s", LISTENING.as_secs()))
                })?;
                match line.as_deref().map(|line| (line, line.strip_prefix(LISTENS))) {
                    Some((_, Some(address))) => {
                        self.coordinator = address.trim().to_owned();
                        let observer = &self.identities.observer;
                        self.lookout = Some(Lookout::open(&self.directory, &self.coordinator, observer)?);
                        return Ok(());
                    }
                    Some((line, None)) => {
                        let sentence = format!("server 0 said {line:?} instead of where it listens; is windlass-ps of the same build?");
                        return Err(Failure::new(Exit::Run, sentence));
                    }
                    // It closed its output without a word, so that it is about to end.
                    None => self.children.next_exit().await,
                }
            }
            exited = self.children.next_exit() => exited,
        };
        Err(could_not_begin(exited))
    }

    /// Starts the process of this role, unless it is there: there may be two reasons to start it, but never two of a role. After
    /// one that has ended a server listens where that did.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(&mut self, role: Role) -> Outcome<()> {
        if self.children.has(role) {
            return Ok(());
        }
        let first_line = self.launch(role)?;
        if let Role::Server(_) = role {
            self.first_lines.insert(role, first_line);
        }
        Ok(())
    }

    fn launch(&mut self, role: Role) -> Outcome<oneshot::Receiver<String>> {
        let program = self.program(role)?;
        self.children.start(role, &program)
    }

    /// Where the server is to listen. One that ended before it said where it did may have found its port taken: any other
    /// is as good, but for server 0, which everybody knows by its address.
    fn place(&mut self, role: Role) -> String {
        if role == COORDINATOR && !self.coordinator.is_empty() {
            return self.coordinator.clone();
        }
        let line = self.first_lines.remove(&role).and_then(|mut line| line.try_recv().ok());
        let address = line.as_deref().and_then(|line| line.strip_prefix(LISTENS)).map(str::trim);
        address.unwrap_or(ANY_PORT).to_owned()
    }

    fn program(&mut self, role: Role) -> Outcome<Program> {
        let is_server = matches!(role, Role::Server(_));
        let place = if is_server { self.place(role) } else { String::new() };
        let mut arguments: Vec<OsString> = vec!["--identity".into(), self.identities.file(role)?.into()];
        let mut add = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
        match role {
            COORDINATOR => {
                add("--plan", self.directory.join(PLAN_FILE).into());
                add("--run-dir", self.directory.clone().into());
                if let Some(location) = &self.checkpoints {
                    add("--checkpoints", location.into());
                }
            }
            _ => add("--coordinator", self.coordinator.clone().into()),
        }
        if is_server {
            add("--listen", place.into());
        }
        if is_server || self.programs.worker_is_ours {
            add("--connect-deadline", self.connect_deadline.to_string().into());
            arguments.push("--exit-with-stdin".into());
        }
        if !is_server && self.programs.worker_is_ours {
            // It begins to read them before it knows the plan.
            arguments.extend(["--data".into(), self.data.clone().into()]);
        }
        if role == COORDINATOR && run_directory::has_begun(&self.directory) {
            arguments.push("--resume".into());
        }
        let file = if is_server { &self.programs.server } else { &self.programs.worker };
        Ok(Program { file: file.clone(), arguments })
    }
}

/// What an exit code of ours means is the same for the program that started the process.
fn could_not_begin(exited: Exited) -> Failure {
    let known = [Exit::Input, Exit::Network, Exit::System];
    let exit =
        known.into_iter().find(|e| exited.status.code() == Some(i32::from(e.code()))).unwrap_or(Exit::Run);
    Failure::new(exit, format!("{} before it listened", exited.sentence())).with_details(exited.last_lines)
}

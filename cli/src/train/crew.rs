//! Starts the servers and workers of a run, each with what it needs to know.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use windlass_common::exit::Exit;
use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::plan::Plan;
use windlass_transport::{Identity, Role};

use crate::children::{Children, Exited, Program};
use crate::failure::{Failure, Outcome};
use crate::identities::Identities;
use crate::lookout::Lookout;
use crate::programs::Programs;
use crate::run_directory::PLAN_FILE;

const COORDINATOR: Role = Role::Server(ServerId(0));
/// A server says where it listens before it does anything that takes time.
const LISTENING: Duration = Duration::from_secs(10);

/// The processes of a run and what is needed to start them.
pub(super) struct Crew {
    pub(super) children: Children,
    identities: Identities,
    programs: Programs,
    directory: PathBuf,
    connect_deadline: u64,
    /// Address of server 0, once it is known.
    coordinator: String,
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
    ) -> Outcome<Self> {
        Ok(Self {
            children: Children::new(directory)?,
            identities: Identities::make(&plan.name, plan.cluster.servers, plan.cluster.workers_max())?,
            programs,
            directory: directory.to_owned(),
            connect_deadline,
            coordinator: String::new(),
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
        let first_line = self.start(COORDINATOR)?;
        let exited = tokio::select! {
            line = tokio::time::timeout(LISTENING, first_line) => {
                let line = line.map(Result::ok).map_err(|_| {
                    Failure::new(Exit::Run, format!("server 0 did not listen within {} s", LISTENING.as_secs()))
                })?;
                match line.as_deref().map(|line| (line, line.strip_prefix("listening on "))) {
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

    /// Starts the process of this role; a second time, if the first one has ended.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(&mut self, role: Role) -> Outcome<oneshot::Receiver<String>> {
        let program = self.program(role)?;
        self.children.start(role, &program)
    }

    fn program(&self, role: Role) -> Outcome<Program> {
        let mut arguments: Vec<OsString> = vec!["--identity".into(), self.identities.file(role)?.into()];
        let mut add = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
        match role {
            COORDINATOR => {
                add("--plan", self.directory.join(PLAN_FILE).into());
                add("--run-dir", self.directory.clone().into());
            }
            _ => add("--coordinator", self.coordinator.clone().into()),
        }
        let is_server = matches!(role, Role::Server(_));
        if is_server {
            add("--listen", "127.0.0.1:0".into());
        }
        if is_server || self.programs.worker_is_ours {
            add("--connect-deadline", self.connect_deadline.to_string().into());
            arguments.push("--exit-with-stdin".into());
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

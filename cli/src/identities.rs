//! Makes the identities of a run, each in a file of its own.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use windlass_common::exit::Exit;
use windlass_common::ids::{ServerId, WorkerId};
use windlass_transport::{Identity, Role, RunAuthority};

use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::IdentitiesFlags;

/// The identities of a run that is started here.
///
/// They lie in a folder of the system's temporary directory that only this user may enter, and not in the run
/// directory: that one is kept, copied and shared, and private keys are not for sharing. Each file is there from the
/// start of its process until all have joined, and the folder goes with this value. Should the program be killed, keys
/// that stay behind open nothing, since the run ends with it. An observer's identity alone lies in the run directory while
/// the run lasts (`Lookout`), for who looks at it from another terminal.
#[derive(Debug)]
pub(crate) struct Identities {
    folder: TempDir,
    all: Vec<Identity>,
    /// For the progress display, which is this program.
    pub(crate) observer: Identity,
}

impl Identities {
    /// Makes all identities of a run.
    ///
    /// # Errors
    /// If the folder or a file cannot be written.
    pub(crate) fn make(name: &str, servers: u32, workers: u32) -> Outcome<Self> {
        let folder = tempfile::Builder::new()
            .prefix("windlass-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .or_fail(Exit::System, "could not make a folder for the identities of the run")?;
        let authority = RunAuthority::new(name).or_exit(Exit::System)?;
        let all = roles(servers, workers).map(|role| authority.issue(role)).collect::<Result<_, _>>();
        let observer = authority.issue(Role::Observer).or_exit(Exit::System)?;
        Ok(Self { folder, all: all.or_exit(Exit::System)?, observer })
    }

    /// The file with the identity of this role, which is there from now on.
    ///
    /// # Errors
    /// If it cannot be written.
    ///
    /// # Panics
    /// If the run has no such role.
    pub(crate) fn file(&self, role: Role) -> Outcome<PathBuf> {
        let file = file(self.folder.path(), role);
        if !file.exists() {
            let identity = self.all.iter().find(|identity| identity.role() == role);
            identity.expect("every process of the run has an identity").save(&file).or_exit(Exit::System)?;
        }
        Ok(file)
    }

    /// Takes the files away: every process has read its own.
    pub(crate) fn withdraw(&self) {
        for identity in &self.all {
            // One that stays goes with the folder.
            let _ = fs::remove_file(file(self.folder.path(), identity.role()));
        }
    }
}

/// Makes identities for processes that are started by hand.
///
/// # Errors
/// If one of the files is there already, before any is written, or cannot be written.
pub(crate) fn run(flags: &IdentitiesFlags) -> Outcome<()> {
    let all = || roles(flags.servers, flags.workers).chain([Role::Observer]);
    if let Some(there) = all().map(|role| file(&flags.out, role)).find(|file| file.symlink_metadata().is_ok())
    {
        let sentence =
            format!("{} is there already, and is not replaced; choose another --out", there.display());
        return Err(Failure::usage(sentence));
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&flags.out)
        .or_fail(Exit::System, format!("could not make the directory {}", flags.out.display()))?;
    let authority = RunAuthority::new(&flags.name).or_fail(Exit::Usage, "--name")?;
    for role in all() {
        authority
            .issue(role)
            .and_then(|identity| identity.save(&file(&flags.out, role)))
            .or_exit(Exit::System)?;
    }
    let out = flags.out.display();
    crate::print(&format!(
        "{} identities in {out}: server-0 to server-{}, worker-0 to worker-{}, observer.\n\
         They hold private keys. Give each process its own file and no other; no further ones can be made that fit.\n",
        all().count(),
        flags.servers - 1,
        flags.workers - 1
    ))
}

fn roles(servers: u32, workers: u32) -> impl Iterator<Item = Role> {
    let servers = (0..servers).map(|n| Role::Server(ServerId(n)));
    servers.chain((0..workers).map(|n| Role::Worker(WorkerId(n))))
}

fn file(folder: &Path, role: Role) -> PathBuf {
    folder.join(format!("{role}.pem"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_for_their_owner_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("ids");
        let flags = IdentitiesFlags { out: out.clone(), servers: 1, workers: 2, name: "r".into() };
        run(&flags).unwrap();
        for name in ["server-0", "worker-0", "worker-1", "observer"] {
            let file = out.join(format!("{name}.pem"));
            assert_eq!(Identity::load(&file).unwrap().role().to_string(), name);
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        let failure = run(&flags).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.sentence().contains("server-0.pem is there already"));
    }

    #[test]
    fn the_identities_of_a_run_go_with_it() {
        let identities = Identities::make("run", 1, 1).unwrap();
        let folder = identities.folder.path().to_owned();
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let file = identities.file(Role::Worker(WorkerId(0))).unwrap();
        assert_eq!(Identity::load(&file).unwrap().role(), Role::Worker(WorkerId(0)));
        identities.withdraw();
        assert!(!file.exists());
        assert!(identities.file(Role::Worker(WorkerId(0))).unwrap().exists());
        drop(identities);
        assert!(!folder.exists());
    }
}

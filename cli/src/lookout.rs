//! Finds a run that is under way, and lets others find one that was started here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use windlass_common::exit::Exit;
use windlass_common::ids::ServerId;
use windlass_transport::{Endpoint, Identity, Limits, Role, resolve};

use crate::failure::{Failure, OrExit, Outcome};
use crate::run_directory::{COORDINATOR_FILE, OBSERVER_FILE};

/// How long a run that is under way may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Two files in a run directory by which the same user can look at the run from elsewhere: where its coordinator is, and an
/// identity for observers. They go with this value. Should the program be killed they stay, and open nothing.
#[derive(Debug)]
pub(crate) struct Lookout {
    files: [PathBuf; 2],
}

impl Lookout {
    /// Writes both; the address comes last, so that whoever finds it finds the identity too.
    ///
    /// # Errors
    /// If one cannot be written.
    pub(crate) fn open(directory: &Path, coordinator: &str, observer: &Identity) -> Outcome<Self> {
        let lookout = Self { files: [COORDINATOR_FILE, OBSERVER_FILE].map(|name| directory.join(name)) };
        let [address, identity] = &lookout.files;
        observer.save(identity).or_exit(Exit::System)?;
        fs::write(address, format!("{coordinator}\n"))
            .or_fail(Exit::System, format!("could not write {}", address.display()))?;
        Ok(lookout)
    }
}

/// Who answers where the files of a lookout say that a run is under way; `None` if nobody does, or there are none.
///
/// # Errors
/// If this machine lets no question be sent.
pub(crate) async fn answering(directory: &Path) -> Outcome<Option<String>> {
    let text = fs::read_to_string(directory.join(COORDINATOR_FILE)).unwrap_or_default();
    let (address, identity) = (text.trim(), Identity::load(&directory.join(OBSERVER_FILE)));
    let Ok(identity) = identity else { return Ok(None) };
    if address.is_empty() || identity.role() != Role::Observer {
        return Ok(None);
    }
    let endpoint = Endpoint::client(&identity, &Limits::default()).or_exit(Exit::System)?;
    let Ok(socket) = resolve(address, ANSWER).await else { return Ok(None) };
    let connected = endpoint.connect(socket, Role::Server(ServerId(0)), ANSWER).await;
    Ok(connected.is_ok().then(|| address.to_owned()))
}

/// Takes away what a program that was killed has left of a lookout.
pub(crate) fn clear(directory: &Path) {
    for name in [COORDINATOR_FILE, OBSERVER_FILE] {
        // One that is gone already needs no removal.
        let _ = fs::remove_file(directory.join(name));
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        for file in &self.files {
            // One that is gone already needs no removal.
            let _ = fs::remove_file(file);
        }
    }
}

/// Where a run is looked at, and as whom.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) coordinator: String,
    pub(crate) identity: Identity,
}

impl View {
    /// Of a run directory, or of HOST:PORT with the identity file of an observer.
    ///
    /// # Errors
    /// If it is neither, the run is not under way, or the identity cannot be read or is not that of an observer.
    pub(crate) fn of(address: &str, identity: Option<&Path>) -> Outcome<Self> {
        let directory = Path::new(address);
        if directory.is_dir() {
            let file = directory.join(COORDINATOR_FILE);
            let text = fs::read_to_string(&file).unwrap_or_default();
            if text.trim().is_empty() {
                let sentence = format!(
                    "{address} is not under way: there is no {}, which windlass train keeps while it runs; for a run that was \
                     started by hand give HOST:PORT and --identity",
                    file.display()
                );
                return Err(Failure::new(Exit::Input, sentence));
            }
            let own = directory.join(OBSERVER_FILE);
            let identity = observer(identity.unwrap_or(&own))?;
            return Ok(Self { coordinator: text.trim().to_owned(), identity });
        }
        if !address.contains(':') {
            let sentence = format!("{address} is neither the directory of a run nor HOST:PORT");
            return Err(Failure::usage(sentence));
        }
        let Some(file) = identity else {
            let sentence = format!("{address} needs --identity FILE, the identity of an observer of the run");
            return Err(Failure::usage(sentence));
        };
        Ok(Self { coordinator: address.to_owned(), identity: observer(file)? })
    }
}

fn observer(file: &Path) -> Outcome<Identity> {
    let identity = Identity::load(file).or_exit(Exit::Input)?;
    if identity.role() != Role::Observer {
        let sentence = format!(
            "--identity {} is that of {}; to look at a run takes that of an observer (observer.pem)",
            file.display(),
            identity.role()
        );
        return Err(Failure::usage(sentence));
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use windlass_common::ids::WorkerId;
    use windlass_transport::RunAuthority;

    use super::*;

    #[test]
    fn a_run_can_be_looked_at_while_it_lasts() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().to_str().unwrap();
        let failure = View::of(run, None).unwrap_err();
        assert_eq!(failure.exit, Exit::Input);
        assert!(failure.sentence().contains("is not under way"), "{}", failure.sentence());
        let authority = RunAuthority::new("run").unwrap();
        let lookout =
            Lookout::open(folder.path(), "127.0.0.1:7171", &authority.issue(Role::Observer).unwrap())
                .unwrap();
        let mode = folder.path().join(OBSERVER_FILE).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let view = View::of(run, None).unwrap();
        assert_eq!((view.coordinator.as_str(), view.identity.role()), ("127.0.0.1:7171", Role::Observer));
        drop(lookout);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_address_needs_an_observers_identity() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("id.pem");
        let of = |address, identity: Option<&Path>| View::of(address, identity).unwrap_err();
        assert!(of("nowhere", None).sentence().contains("neither the directory of a run nor HOST:PORT"));
        assert!(of("host0:7171", None).sentence().contains("host0:7171 needs --identity"));
        assert_eq!(of("host0:7171", Some(&file)).exit, Exit::Input);
        RunAuthority::new("run").unwrap().issue(Role::Worker(WorkerId(0))).unwrap().save(&file).unwrap();
        let failure = of("host0:7171", Some(&file));
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.sentence().contains("is that of worker-0"), "{}", failure.sentence());
    }
}

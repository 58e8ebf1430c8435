//! Starts a server as a process of its own, as a run has it, and reads how much memory it has.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use windlass_common::plan::Plan;
use windlass_transport::Identity;

/// What a process has of the machine's memory, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All that is resident (`VmRSS`).
    pub resident: u64,
    /// What of it belongs to no file, such as heap and stacks (`RssAnon`).
    pub anonymous: u64,
}

impl Memory {
    /// Reads it from the text of `/proc/PID/status`.
    ///
    /// # Errors
    /// If a figure is missing.
    pub fn parse(status: &str) -> anyhow::Result<Self> {
        let figure = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
            number.with_context(|| format!("the system does not tell {name} of a process in kB"))
        };
        Ok(Self { resident: figure("VmRSS")?, anonymous: figure("RssAnon")? })
    }
}

/// A process of `windlass-ps` that serves a plan alone. It is killed when dropped, and ends with this program however that
/// ends.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Server {
    /// Starts the program on a port that is free. It says on stderr what is wrong, unless `WINDLASS_LOG` asks for more.
    ///
    /// # Errors
    /// If it cannot be started, or does not listen within 10 s.
    pub fn start(program: &Path, plan: &Plan, identity: &Identity) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let [identity_file, plan_file, run] =
            ["server-0.pem", "plan.toml", "run"].map(|name| folder.path().join(name));
        identity.save(&identity_file)?;
        fs::write(&plan_file, plan.to_text())?;
        let mut command = Command::new(program);
        command.arg("--identity").arg(&identity_file).arg("--plan").arg(&plan_file);
        command.arg("--run-dir").arg(&run).args(["--listen", "127.0.0.1:0", "--exit-with-stdin"]);
        if std::env::var_os("WINDLASS_LOG").is_none() {
            command.env("WINDLASS_LOG", "warn");
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(|| {
            format!("could not start {}; build it with cargo build --release", program.display())
        })?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { child, address: any, _folder: folder };
        server.address = server.listens()?;
        Ok(server)
    }

    fn listens(&mut self) -> anyhow::Result<SocketAddr> {
        let stdout = self.child.stdout.take().context("its output is piped")?;
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line).map(|_| line);
            let _ = tell.send(read);
        });
        let line = told.recv_timeout(Duration::from_secs(10)).context("the server did not start")??;
        let address = line.trim().strip_prefix("listening on ").context("the server ended at once")?;
        Ok(address.parse()?)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What memory it has now.
    ///
    /// # Errors
    /// If it has ended.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        Memory::parse(&status.context("the server has ended")?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kib_and_its_absence_is_told() {
        let status = "Name:\tx\nVmRSSx:\t1 kB\nVmRSS:\t   20480 kB\nRssAnon:\t  1024 kB\nRssFile:\t 7 kB\n";
        assert_eq!(Memory::parse(status).unwrap(), Memory { resident: 20_480, anonymous: 1024 });
        // A process that has ended and is not waited for has none.
        let error = Memory::parse("Name:\tx\nState:\tZ (zombie)\n").unwrap_err();
        assert!(error.to_string().contains("VmRSS"), "{error}");
    }
}

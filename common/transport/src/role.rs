//! Names what a process is in a run, as its certificate states it.

use std::fmt;
use std::str::FromStr;

use windlass_common::ids::{ServerId, WorkerId};

/// What a process is in its run. It is read from the verified certificate, never from a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A parameter-server process.
    Server(ServerId),
    /// A computing process.
    Worker(WorkerId),
    /// A process that may look on, such as a progress display, but changes nothing.
    Observer,
}

/// A text that names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a role: write server-N, worker-N or observer")]
pub struct RoleError(String);

const DOMAIN: &str = ".windlass";

impl Role {
    /// The DNS name that stands for this role in a certificate, such as `server-0.windlass`.
    pub fn dns_name(self) -> String {
        format!("{self}{DOMAIN}")
    }

    /// The role that a certificate's DNS name stands for, or none.
    pub(crate) fn of_dns_name(name: &str) -> Option<Self> {
        name.strip_suffix(DOMAIN)?.parse().ok()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(ServerId(number)) => write!(f, "server-{number}"),
            Self::Worker(WorkerId(number)) => write!(f, "worker-{number}"),
            Self::Observer => f.write_str("observer"),
        }
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let role = match text.split_once('-') {
            None if text == "observer" => Some(Self::Observer),
            Some(("server", number)) => number.parse().ok().map(|n| Self::Server(ServerId(n))),
            Some(("worker", number)) => number.parse().ok().map(|n| Self::Worker(WorkerId(n))),
            _ => None,
        };
        // Only the form that Display writes is a role: "server-007" and "server-+7" would be second names for one.
        role.filter(|role| role.to_string() == text).ok_or_else(|| RoleError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_has_one_text_and_one_name() {
        for (role, text) in [
            (Role::Server(ServerId(0)), "server-0"),
            (Role::Worker(WorkerId(4_294_967_295)), "worker-4294967295"),
            (Role::Observer, "observer"),
        ] {
            assert_eq!(role.to_string(), text);
            assert_eq!(text.parse(), Ok(role));
            assert_eq!(Role::of_dns_name(&role.dns_name()), Some(role));
        }
        for text in
            ["", "server", "server-", "server-01", "server-+1", "worker-4294967296", "worker--1", "Observer"]
        {
            let error = text.parse::<Role>().unwrap_err();
            assert!(error.to_string().contains("write server-N, worker-N or observer"), "{error}");
        }
        assert_eq!(Role::of_dns_name("server-0.example"), None);
        assert_eq!(Role::of_dns_name("server-0"), None);
    }
}

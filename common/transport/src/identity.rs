//! Reads, checks and stores what a process shows of itself and trusts in others.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::role::Role;
use crate::tls;

/// An identity file is three PEM sections of under 2 KiB each; what is larger is some other file.
const IDENTITY_BYTES_MAX: u64 = 64 * 1024;

/// Why an identity could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What is wrong is wrong in a file.
    #[error("identity file {}: {problem}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: Box<IdentityError>,
    },
    /// The file could not be read.
    #[error("it could not be read: {0}")]
    Read(#[source] io::Error),
    /// The file is too large to be an identity.
    #[error(
        "it has {found} bytes, and an identity has at most {IDENTITY_BYTES_MAX}; is it another kind of file?"
    )]
    TooLarge {
        /// The size of the file in bytes.
        found: u64,
    },
    /// The file could not be written.
    #[error("it could not be written: {0}")]
    Write(#[source] io::Error),
    /// There is a file of that name already; an identity never replaces another.
    #[error("it exists already; remove it, or choose another name")]
    Exists,
    /// The text is not PEM.
    #[error("it is not a readable PEM text: {0}")]
    Pem(String),
    /// The text has no certificate at all.
    #[error(
        "it has no certificate; an identity is a certificate, its private key and the run's CA certificate"
    )]
    NoCertificate,
    /// The text has one certificate only.
    #[error(
        "it has no CA certificate; the certificate of the run's authority must follow that of the process"
    )]
    NoAuthority,
    /// The text has more than two certificates.
    #[error(
        "it has {found} certificates, and an identity has two: that of the process, then that of the run's CA"
    )]
    TooManyCertificates {
        /// How many there are.
        found: usize,
    },
    /// The text has no private key.
    #[error("it has no private key (a section that begins with BEGIN PRIVATE KEY)")]
    NoKey,
    /// The text has several private keys.
    #[error("it has {found} private keys, and an identity has one")]
    TooManyKeys {
        /// How many there are.
        found: usize,
    },
    /// The private key cannot be used.
    #[error("its private key cannot be used: {0}")]
    Key(String),
    /// The private key belongs to some other certificate.
    #[error("its private key does not match its certificate; were two identities mixed?")]
    KeyMismatch,
    /// One of the certificates cannot be parsed.
    #[error("its {which} certificate cannot be parsed: {reason}")]
    Malformed {
        /// Which certificate: "own" or "CA".
        which: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// The certificate was issued by another authority.
    #[error("its certificate was not issued by its CA certificate; were the files of two runs mixed?")]
    OtherAuthority,
    /// The certificate's time has passed.
    #[error("its certificate expired {} ago; issue a new one", ago(*seconds))]
    Expired {
        /// For how many seconds it has been expired.
        seconds: u64,
    },
    /// The certificate's time has not come.
    #[error("its certificate is valid only in {} from now; is this machine's clock right?", ago(*seconds))]
    NotYetValid {
        /// In how many seconds it begins to be valid.
        seconds: u64,
    },
    /// The certificate does not verify for another reason.
    #[error("its certificate does not verify: {0}")]
    Unverified(String),
    /// The certificate does not name exactly one role.
    #[error("its certificate names no role of a run (such as server-0.windlass) but {found}")]
    NoRole {
        /// The names it has.
        found: String,
    },
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Issue(#[from] rcgen::Error),
}

impl IdentityError {
    fn in_file(self, path: &Path) -> Self {
        Self::InFile { path: path.to_owned(), problem: Box::new(self) }
    }
}

/// A length of time in the unit a person would use.
fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// What a process shows of itself and trusts in others: its certificate, its private key, the run's CA certificate.
///
/// It has been checked when it exists: the key matches, the CA issued the certificate, the time is right, and the
/// certificate names one role.
pub struct Identity {
    role: Role,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    authority: CertificateDer<'static>,
    pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity {{ role: {}, key: hidden }}", self.role)
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            role: self.role,
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
            authority: self.authority.clone(),
            pem: self.pem.clone(),
        }
    }
}

impl Identity {
    /// What this process is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The whole identity as one PEM text: certificate, private key, CA certificate. It is a secret.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// Reads and checks an identity. The process's certificate comes before the CA's; the key may stand anywhere.
    ///
    /// # Errors
    /// Says what is missing or does not fit.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let (certificates, mut keys) = sections(text)?;
        let found = certificates.len();
        let mut certificates = certificates.into_iter();
        let (certificate, authority) = match (certificates.next(), certificates.next()) {
            (None, _) => return Err(IdentityError::NoCertificate),
            (_, None) => return Err(IdentityError::NoAuthority),
            _ if found > 2 => return Err(IdentityError::TooManyCertificates { found }),
            (Some(certificate), Some(authority)) => (certificate, authority),
        };
        if keys.len() > 1 {
            return Err(IdentityError::TooManyKeys { found: keys.len() });
        }
        let key = keys.pop().ok_or(IdentityError::NoKey)?;
        check_key(&certificate, &key)?;
        check_certificate(&certificate, &authority, UnixTime::now())?;
        let role = role_of(&certificate)?;
        Ok(Self { role, certificate, key, authority, pem: text.to_owned() })
    }

    /// Reads and checks an identity file, and warns in the log when others may read it.
    ///
    /// # Errors
    /// Names the file, and what is missing or does not fit.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let read = || {
            let metadata = std::fs::metadata(path).map_err(IdentityError::Read)?;
            if metadata.len() > IDENTITY_BYTES_MAX {
                return Err(IdentityError::TooLarge { found: metadata.len() });
            }
            warn_if_open(path, &metadata);
            Self::from_pem(&std::fs::read_to_string(path).map_err(IdentityError::Read)?)
        };
        read().map_err(|problem| problem.in_file(path))
    }

    /// Writes the identity to a new file that only its owner may read. The file appears complete or not at all.
    ///
    /// # Errors
    /// Names the file. An existing file is never replaced.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        create_exclusive(path, self.pem.as_bytes()).map_err(|source| {
            let problem = match source.kind() {
                io::ErrorKind::AlreadyExists => IdentityError::Exists,
                _ => IdentityError::Write(source),
            };
            problem.in_file(path)
        })
    }

    /// An identity that trusts another run than the one that issued it, which no file can hold.
    #[cfg(test)]
    pub(crate) fn trusting(&self, other: &Self) -> Self {
        Self { authority: other.authority.clone(), ..self.clone() }
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    pub(crate) fn authority(&self) -> CertificateDer<'static> {
        self.authority.clone()
    }
}

/// The one role that a certificate names. The caller has verified the certificate.
pub(crate) fn role_of(certificate: &CertificateDer<'_>) -> Result<Role, IdentityError> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|error| malformed("own", error))?;
    let names: Vec<&str> = parsed.valid_dns_names().collect();
    match names.as_slice() {
        [name] => Role::of_dns_name(name),
        _ => None,
    }
    .ok_or_else(|| IdentityError::NoRole {
        found: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
    })
}

type Sections = (Vec<CertificateDer<'static>>, Vec<PrivateKeyDer<'static>>);

fn sections(text: &str) -> Result<Sections, IdentityError> {
    let (mut certificates, mut keys) = (Vec::new(), Vec::new());
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        let (kind, der) = section.map_err(|error| IdentityError::Pem(pem_reason(error)))?;
        match kind {
            SectionKind::Certificate => certificates.push(CertificateDer::from(der)),
            SectionKind::PrivateKey => keys.push(PrivateKeyDer::Pkcs8(der.into())),
            SectionKind::EcPrivateKey => keys.push(PrivateKeyDer::Sec1(der.into())),
            SectionKind::RsaPrivateKey => keys.push(PrivateKeyDer::Pkcs1(der.into())),
            _ => {}
        }
    }
    Ok((certificates, keys))
}

/// The parser's errors hold raw lines, which may be parts of a key and must not reach a log.
fn pem_reason(error: pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no END line; was the file cut off?".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line is malformed".to_owned(),
        pem::Error::Base64Decode(_) => "a section is not base64".to_owned(),
        _ => "it has no sections".to_owned(),
    }
}

fn check_key(
    certificate: &CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
) -> Result<(), IdentityError> {
    rustls::sign::CertifiedKey::from_der(vec![certificate.clone()], key.clone_key(), &tls::provider())
        .map(drop)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => IdentityError::KeyMismatch,
            rustls::Error::InvalidCertificate(reason) => malformed("own", reason),
            other => IdentityError::Key(other.to_string()),
        })
}

fn check_certificate(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<(), IdentityError> {
    let anchor = anchor_from_trusted_cert(authority).map_err(|error| malformed("CA", error))?;
    let parsed = EndEntityCert::try_from(certificate).map_err(|error| malformed("own", error))?;
    let algorithms = tls::provider().signature_verification_algorithms.all;
    parsed
        .verify_for_usage(algorithms, &[anchor], &[], now, KeyUsage::client_auth(), None, None)
        .map(drop)
        .map_err(|error| match error {
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                IdentityError::OtherAuthority
            }
            webpki::Error::CertExpired { time, not_after } => {
                IdentityError::Expired { seconds: time.as_secs().saturating_sub(not_after.as_secs()) }
            }
            webpki::Error::CertNotValidYet { time, not_before } => {
                IdentityError::NotYetValid { seconds: not_before.as_secs().saturating_sub(time.as_secs()) }
            }
            other => IdentityError::Unverified(other.to_string()),
        })
}

fn malformed(which: &'static str, reason: impl fmt::Display) -> IdentityError {
    IdentityError::Malformed { which, reason: reason.to_string() }
}

#[cfg(unix)]
fn warn_if_open(path: &Path, metadata: &std::fs::Metadata) {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "others may read this identity file; chmod 600 it");
    }
}

#[cfg(not(unix))]
fn warn_if_open(_path: &Path, _metadata: &std::fs::Metadata) {}

/// Writes a complete file beside its place and links it there, which fails when the name is taken.
fn create_exclusive(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    // A part of the same name can only be left from a process that is no more.
    let _ = std::fs::remove_file(&part);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&part)?;
    let done =
        file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| std::fs::hard_link(&part, path));
    std::fs::remove_file(&part)?;
    done
}

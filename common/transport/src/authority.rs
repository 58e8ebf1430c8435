//! Issues the identities of one run.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};

use crate::identity::{Identity, IdentityError};
use crate::role::Role;

/// Certificates are valid from this long ago, since the clocks of the machines of a run may differ.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);
/// Certificates are valid for this long from now; the authority's key lives no longer than the process that made it.
const VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// The authority of one run: whoever starts a run makes one, issues an identity per process and then forgets it.
pub struct RunAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl fmt::Debug for RunAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunAuthority { key: hidden }")
    }
}

impl RunAuthority {
    /// Makes a fresh authority with a key of its own (ECDSA, P-256), which exists in this process only.
    ///
    /// # Errors
    /// When the operating system gives no randomness, or the name cannot stand in a certificate.
    pub fn new(run_name: &str) -> Result<Self, IdentityError> {
        let mut params = dated(CertificateParams::default());
        params.distinguished_name = common_name(&format!("windlass run {run_name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, key)? })
    }

    /// Issues the identity of one process. Only servers may accept connections with theirs.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn issue(&self, role: Role) -> Result<Identity, IdentityError> {
        let mut params = dated(CertificateParams::new(vec![role.dns_name()])?);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if matches!(role, Role::Server(_)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.distinguished_name = common_name(&role.to_string());
        Identity::from_pem(&self.sign(params)?)
    }

    /// A certificate, its new key and the authority's certificate as one PEM text.
    fn sign(&self, mut params: CertificateParams) -> Result<String, IdentityError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok([certificate.pem(), key.serialize_pem(), self.issuer.pem()].concat())
    }
}

fn dated(mut params: CertificateParams) -> CertificateParams {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + VALIDITY;
    params
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn refusal(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = dated(CertificateParams::new(vec!["server-0.windlass".to_owned()]).unwrap());
        change(&mut params);
        let pem = RunAuthority::new("run").unwrap().sign(params).unwrap();
        Identity::from_pem(&pem).unwrap_err().to_string()
    }

    #[test]
    fn certificates_out_of_their_time_are_refused_with_the_distance() {
        let long_gone = refusal(|params| {
            params.not_before -= 400 * DAY;
            params.not_after -= 368 * DAY;
        });
        assert_eq!(long_gone, "its certificate expired 3 days ago; issue a new one");
        let to_come = refusal(|params| params.not_before += DAY + Duration::from_secs(330));
        assert!(to_come.starts_with("its certificate is valid only in 5 min from now"), "{to_come}");
    }

    #[test]
    fn certificates_that_name_no_single_role_are_refused() {
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            refusal(|params| {
                params.subject_alt_names = CertificateParams::new(names).unwrap().subject_alt_names
            })
        };
        assert!(names(&[]).ends_with("(such as server-0.windlass) but none"));
        assert!(names(&["example.org"]).ends_with("but example.org"));
        assert!(
            names(&["server-0.windlass", "worker-0.windlass"])
                .ends_with("but server-0.windlass, worker-0.windlass")
        );
        assert!(names(&["server-00.windlass"]).ends_with("but server-00.windlass"));
        // A wildcard is no name of anybody.
        assert!(names(&["*.windlass"]).ends_with("but none"), "{}", names(&["*.windlass"]));
    }
}

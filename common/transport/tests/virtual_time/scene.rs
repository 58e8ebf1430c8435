//! Endpoints whose sizes and times follow from a seed alone, and what they are named by.
//!
//! TLS takes its keys from the system, so the bytes on the wire differ from run to run. Ed25519 signatures are all of one
//! length, those of ECDSA are not; with them the *sizes* are the same.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SerialNumber, date_time_ymd,
};
use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::rng::{Purpose, Rng};
use windlass_transport::bare::quinn::crypto::{CryptoError, HmacKey};
use windlass_transport::bare::quinn::{ConnectionId, ConnectionIdGenerator};
use windlass_transport::bare::{self};
use windlass_transport::{Endpoint, Identity, Limits, Role};

use crate::network::Network;

pub(crate) const WORKERS: u32 = 2;
pub(crate) const SERVER: Role = Role::Server(ServerId(0));

pub(crate) fn worker(number: u32) -> Role {
    Role::Worker(WorkerId(number))
}

/// The server has port 1, worker n port 100 + n.
pub(crate) fn address(role: Role) -> SocketAddr {
    let port = match role {
        Role::Worker(WorkerId(number)) => 100 + number as u16,
        _ => 1,
    };
    ([10, 0, 0, 1], port).into()
}

/// An endpoint on the network that draws every random number of its own, apart from those of TLS, by the seed.
pub(crate) fn endpoint(network: &Arc<Network>, seed: u64, role: Role) -> Endpoint {
    let limits = Limits::default();
    let address = address(role);
    let stream =
        move |use_: u64| Rng::new(seed, Purpose::Link { link: u64::from(address.port()) << 32 | use_ });
    let mut config = bare::endpoint_config(&limits).unwrap();
    let mut draws = stream(0);
    let words = [(); 4].map(|()| draws.bits().to_le_bytes());
    config.rng_seed(Some(words.concat().try_into().unwrap()));
    config.cid_generator(move || Box::new(Ids(stream(1))));
    config.reset_key(Arc::new(FixedKey(stream(2).bits())));
    let identity = identity(role);
    let inner = bare::over(network.socket(address), config, identity, &limits).unwrap();
    Endpoint::from_quinn(inner, identity, &limits).unwrap()
}

/// Connection ids of 8 bytes.
struct Ids(Rng);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.bits().to_le_bytes())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// Makes tokens of stateless resets. Nobody attacks here, so they need not be hard to guess.
struct FixedKey(u64);

impl HmacKey for FixedKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        let sum = data
            .iter()
            .fold(self.0, |sum, &byte| sum.rotate_left(7).wrapping_mul(0x9e37_79b9) ^ u64::from(byte));
        for (part, place) in signature.chunks_mut(8).enumerate() {
            let bytes = sum.wrapping_add(part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            place.copy_from_slice(&bytes[..place.len()]);
        }
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut expected = [0; 32];
        self.sign(data, &mut expected);
        if signature == expected { Ok(()) } else { Err(CryptoError) }
    }
}

/// The identities of one run, made once.
fn identity(role: Role) -> &'static Identity {
    static IDENTITIES: LazyLock<Vec<Identity>> = LazyLock::new(|| {
        let mut params = params(&[], 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        let roles = std::iter::once(SERVER).chain((0..WORKERS).map(worker));
        roles.enumerate().map(|(number, role)| issue(&authority, role, 2 + number as u8)).collect()
    });
    IDENTITIES.iter().find(|identity| identity.role() == role).unwrap()
}

fn issue(authority: &CertifiedIssuer<'static, KeyPair>, role: Role, serial: u8) -> Identity {
    let mut params = params(&[role.dns_name()], serial);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    Identity::from_pem(&[certificate.pem(), key.serialize_pem(), authority.pem()].concat()).unwrap()
}

fn params(names: &[String], serial: u8) -> CertificateParams {
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "windlass test");
    params.serial_number = Some(SerialNumber::from(vec![serial]));
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2049, 1, 1));
    params
}

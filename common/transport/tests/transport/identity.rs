//! What an identity file must hold, and what is said when it does not.

use windlass_common::ids::ServerId;
use windlass_transport::{Identity, Role, RunAuthority};

use crate::support::{SERVER, WORKER};

fn parts(identity: &Identity) -> [String; 3] {
    let mut parts =
        identity.to_pem().split_inclusive("-----END ").flat_map(|part| part.split_inclusive("-----\n"));
    let mut next = || -> String {
        let section: Vec<&str> = parts.by_ref().take(3).collect();
        section.concat()
    };
    [next(), next(), next()]
}

#[test]
fn an_identity_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server-0.pem");
    let identity = RunAuthority::new("first run").unwrap().issue(SERVER).unwrap();
    identity.save(&path).unwrap();
    let loaded = Identity::load(&path).unwrap();
    assert_eq!((loaded.role(), loaded.to_pem()), (SERVER, identity.to_pem()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no partial file is left");

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn an_identity_file_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server-0.pem");
    std::fs::write(&path, "precious").unwrap();
    let error = RunAuthority::new("run").unwrap().issue(SERVER).unwrap().save(&path).unwrap_err();
    let expected =
        format!("identity file {}: it exists already; remove it, or choose another name", path.display());
    assert_eq!(error.to_string(), expected);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no partial file is left");
}

#[test]
fn each_lack_is_named() {
    let authority = RunAuthority::new("one").unwrap();
    let [certificate, key, ca] = parts(&authority.issue(SERVER).unwrap());
    let [other_certificate, other_key, other_ca] =
        parts(&RunAuthority::new("two").unwrap().issue(SERVER).unwrap());
    Identity::from_pem(&[&*certificate, &key, &ca].concat()).unwrap();
    Identity::from_pem(&[&*key, "a comment\n", &certificate, &ca].concat()).unwrap();

    let cut = &key[..key.len() - 30];
    let bad = key.replace("PRIVATE KEY-----\nM", "PRIVATE KEY-----\n!");
    let cases: [(&[&str], &str); 13] = [
        (&[], "it has no certificate"),
        (&["hello"], "it has no certificate"),
        (&[&key], "it has no certificate"),
        (&[&certificate, &key], "it has no CA certificate"),
        (&[&certificate, &ca], "it has no private key"),
        (&[&certificate, &key, &other_key, &ca], "it has 2 private keys"),
        (&[&certificate, &key, &ca, &other_ca], "it has 3 certificates"),
        (&[&certificate, &other_key, &ca], "its private key does not match its certificate"),
        (&[&certificate, &key, &other_ca], "its certificate was not issued by its CA certificate"),
        (&[&other_certificate, &key, &ca], "its private key does not match its certificate"),
        (&[&ca, &key, &certificate], "its private key does not match its certificate"),
        (&[&certificate, &ca, cut], "a section has no END line; was the file cut off?"),
        (&[&certificate, &bad, &ca], "a section is not base64"),
    ];
    for (sections, expected) in cases {
        let error = Identity::from_pem(&sections.concat()).unwrap_err().to_string();
        assert!(error.contains(expected), "expected \"{expected}\", got \"{error}\"");
        let secret = key.lines().nth(1).unwrap();
        assert!(!error.contains(&secret[..20]), "an error shows a part of the key: {error}");
    }
}

#[test]
fn a_missing_file_and_a_huge_one_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("worker-3.pem");
    let text = Identity::load(&path).unwrap_err().to_string();
    assert!(text.starts_with(&format!("identity file {}: it could not be read: ", path.display())), "{text}");
    std::fs::write(&path, vec![b'x'; 100_000]).unwrap();
    let text = Identity::load(&path).unwrap_err().to_string();
    assert!(text.contains("it has 100000 bytes, and an identity has at most 65536"), "{text}");
}

#[test]
fn nothing_secret_is_shown_by_debug() {
    let authority = RunAuthority::new("run").unwrap();
    let identity = authority.issue(WORKER).unwrap();
    assert_eq!(format!("{identity:?}"), "Identity { role: worker-3, key: hidden }");
    assert_eq!(format!("{authority:?}"), "RunAuthority { key: hidden }");
    assert_eq!(authority.issue(Role::Server(ServerId(12))).unwrap().role().to_string(), "server-12");
}

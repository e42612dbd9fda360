//! Certificates for tests, as the files that NBD programs share: `ca-cert.pem`, `server-cert.pem`, `client-cert.pem` and
//! their keys, all in one directory.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Makes an authority of its own and what it signs: a server for `localhost` and 127.0.0.1, and a client.
///
/// # Panics
/// If that can't be done.
pub fn write(directory: &Path) {
    fs::create_dir_all(directory).expect("a directory for certificates");
    let key = KeyPair::generate().expect("a key");
    let mut authority = params("authority", &[]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = authority.self_signed(&key).expect("a certificate");
    fs::write(directory.join("ca-cert.pem"), certificate.pem()).expect("a file");
    let issuer = Issuer::new(authority, key);
    let roles = [
        (
            "server",
            ["localhost", "127.0.0.1"].as_slice(),
            ExtendedKeyUsagePurpose::ServerAuth,
        ),
        ("client", &[], ExtendedKeyUsagePurpose::ClientAuth),
    ];
    for (role, names, purpose) in roles {
        let key = KeyPair::generate().expect("a key");
        let mut params = params(role, names);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let file = |what: &str| directory.join(format!("{role}-{what}.pem"));
        fs::write(file("cert"), certificate.pem()).expect("a file");
        fs::write(file("key"), key.serialize_pem()).expect("a file");
    }
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names for a certificate");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

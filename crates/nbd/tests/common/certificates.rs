//! Certificates for tests, in the layout of files that NBD programs share.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber, date_time_ymd,
};

/// An authority that signs certificates.
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub struct Identity {
    pub certificate: Certificate,
    pub key: KeyPair,
    pub serial: SerialNumber,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params(name, vec![]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// Writes `ca-cert.pem`.
    pub fn write(&self, directory: &Path) {
        fs::write(directory.join("ca-cert.pem"), self.certificate.pem()).unwrap();
    }

    /// Writes `ca-crl.pem`.
    pub fn write_revocations(&self, directory: &Path, revoked: &[&Identity]) {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|identity| RevokedCertParams {
                    serial_number: identity.serial.clone(),
                    revocation_time: date_time_ymd(2021, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        fs::write(directory.join("ca-crl.pem"), list.pem().unwrap()).unwrap();
    }

    /// For a server of that name, and for 127.0.0.1.
    pub fn server(&self, name: &str) -> Identity {
        let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
        self.sign(params(name, names), ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub fn client(&self, name: &str) -> Identity {
        self.sign(params(name, vec![]), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, mut params: CertificateParams, purpose: ExtendedKeyUsagePurpose) -> Identity {
        let key = KeyPair::generate().unwrap();
        let serial = SerialNumber::from(u64::from(rand::random::<u32>()) + 1);
        params.serial_number = Some(serial.clone());
        // QEMU demands the second.
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![purpose];
        Identity {
            certificate: params.signed_by(&key, &self.issuer).unwrap(),
            key,
            serial,
        }
    }
}

fn params(name: &str, names: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Writes `<role>-cert.pem` and `<role>-key.pem`.
pub fn write_identity(directory: &Path, role: &str, identity: &Identity) {
    fs::write(
        directory.join(format!("{role}-cert.pem")),
        identity.certificate.pem(),
    )
    .unwrap();
    fs::write(
        directory.join(format!("{role}-key.pem")),
        identity.key.serialize_pem(),
    )
    .unwrap();
}

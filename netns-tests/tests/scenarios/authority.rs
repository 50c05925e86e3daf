//! Certificates for a test, made by `openssl` and gone with it.

use braid_netns::guard::{TempDir, temp_dir};
use braid_netns::strongswan::Certificate;
use braid_netns::{Error, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Of all keys of one authority.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeyKind {
    Rsa,
    Ecdsa,
    Ed25519,
}

/// A root, and others below it, of which the last one issues.
pub(crate) struct Authority {
    directory: TempDir,
    kind: KeyKind,
    /// Those between the root and the certificates, the root's own first.
    between: usize,
}

impl Authority {
    pub(crate) fn new(kind: KeyKind, between: usize) -> Result<Self> {
        Self::of("Braid", kind, between)
    }

    /// Of another organisation.
    pub(crate) fn of(organisation: &str, kind: KeyKind, between: usize) -> Result<Self> {
        let made = Self { directory: temp_dir("ca")?, kind, between };
        for number in 0..=between {
            made.key(&format!("ca{number}.key"))?;
            let by = match number.checked_sub(1) {
                Some(above) => format!("-CA ca{above}.pem -CAkey ca{above}.key"),
                None => String::new(),
            };
            made.openssl(&format!(
                "req -x509 {by} -key ca{number}.key -out ca{number}.pem -days 2 -subj /O={organisation}/CN=ca{number} \
                 -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign"
            ))?;
        }
        Ok(made)
    }

    /// A certificate of the root's for other times than now, as OpenSSL writes them: `20200101000000Z`.
    pub(crate) fn issue_for(&self, name: &str, from: &str, until: &str) -> Result<Certificate> {
        let settings = format!(
            "[ca]\ndefault_ca = this\n[this]\ndatabase = index.txt\nnew_certs_dir = .\ndefault_md = sha256\n\
             policy = any\nrand_serial = yes\nunique_subject = no\nx509_extensions = leaf\n\
             [any]\norganizationName = optional\ncommonName = supplied\n\
             [leaf]\nbasicConstraints = critical,CA:false\nkeyUsage = critical,digitalSignature\n\
             subjectAltName = DNS:{name}\n"
        );
        for (file, text) in [("ca.cnf", settings.as_str()), ("index.txt", "")] {
            fs::write(self.file(file), text).map_err(Error::io("cannot write openssl's settings"))?;
        }
        let key = format!("{name}.key");
        self.key(&key)?;
        self.openssl(&format!("req -new -key {key} -out {name}.csr -subj /O=Braid/CN={name}"))?;
        self.openssl(&format!(
            "ca -batch -notext -config ca.cnf -cert ca0.pem -keyfile ca0.key -in {name}.csr -out {name}.pem \
             -startdate {from} -enddate {until}"
        ))?;
        let certificate = self.file(&format!("{name}.pem"));
        Ok(Certificate { certificate, key: self.file(&key), ca: self.file("ca0.pem"), between: Vec::new() })
    }

    /// Its file holds those above it as well, but for the root.
    pub(crate) fn issue(&self, name: &str) -> Result<Certificate> {
        let (key, by) = (format!("{name}.key"), self.between);
        self.key(&key)?;
        self.openssl(&format!(
            "req -x509 -CA ca{by}.pem -CAkey ca{by}.key -key {key} -out {name}.pem -days 1 \
             -subj /O=Braid/CN={name} -addext subjectAltName=DNS:{name} \
             -addext basicConstraints=critical,CA:false -addext keyUsage=critical,digitalSignature"
        ))?;
        let between: Vec<PathBuf> =
            (1..=by).rev().map(|number| self.file(&format!("ca{number}.pem"))).collect();
        let certificate = self.file(&format!("{name}.pem"));
        let failed = || Error::io("cannot write a chain");
        let mut chain = fs::read_to_string(&certificate).map_err(failed())?;
        for file in &between {
            chain += &fs::read_to_string(file).map_err(failed())?;
        }
        fs::write(&certificate, chain).map_err(failed())?;
        Ok(Certificate { certificate, key: self.file(&key), ca: self.file("ca0.pem"), between })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn key(&self, file: &str) -> Result<()> {
        let algorithm = match self.kind {
            KeyKind::Rsa => "RSA -pkeyopt rsa_keygen_bits:3072",
            KeyKind::Ecdsa => "EC -pkeyopt ec_paramgen_curve:P-256",
            KeyKind::Ed25519 => "ED25519",
        };
        self.openssl(&format!("genpkey -out {file} -algorithm {algorithm}"))
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(arguments.split_whitespace()).current_dir(self.directory.path());
        let output = command.output().map_err(Error::io("cannot run openssl"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Usage(format!("openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr))))
    }
}

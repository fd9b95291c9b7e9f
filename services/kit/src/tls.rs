//! TLS between services, each of which proves who it is: who has no certificate of the stack's authority reaches nothing,
//! and nobody in between reads along.
//!
//! Servers and channels take the same three files from the same variables, so that no service has the one without the
//! other. The files are read again when they change: new connections then use the new certificates.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::renewed::{self, Renewed};

/// Variable with the path of the certificates of the authorities that peers are trusted by.
const CA: &str = "FIRN_TLS_CA";
/// Variable with the path of the service's own certificate, and those between it and its authority.
const CERT: &str = "FIRN_TLS_CERT";
/// Variable with the path of that certificate's key.
const KEY: &str = "FIRN_TLS_KEY";
/// Largest of these files in bytes.
const LARGEST: u64 = 1 << 20;
/// What gRPC speaks inside TLS.
const HTTP2: &[u8] = b"h2";

/// Certificates of a service: whom it trusts, and what it shows to them. Clones share them.
#[derive(Clone)]
pub struct Tls(Arc<Renewed<Files>>);

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Some of the variables are set.
    #[error(
        "{missing} is not set, but {given} is: a service needs {CA}, {CERT} and {KEY} for TLS, and none of them without"
    )]
    Missing {
        /// The first variable that is not set.
        missing: &'static str,
        /// The first that is.
        given: &'static str,
    },
    /// A file can't be read.
    #[error("cannot read {path}, which {variable} names: {source}", path = path.display())]
    Read {
        /// The variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}, which {variable} names, {reason}", path = path.display())]
    Content {
        /// The variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The files do not fit together.
    #[error("the certificate in {CERT} and the key in {KEY} can't be used together: {0}")]
    Unfit(#[source] rustls::Error),
}

impl Tls {
    /// Reads the PEM files that `FIRN_TLS_CA` (whom to trust), `FIRN_TLS_CERT` (the own certificate, then those between it
    /// and its authority) and `FIRN_TLS_KEY` name; `None` where none is set to something.
    ///
    /// # Errors
    /// Fails if some are set and some are not, or as [`Self::read`].
    pub fn from_env() -> Result<Option<Self>, TlsError> {
        match given()? {
            Some([ca, cert, key]) => Self::read(Path::new(&ca), Path::new(&cert), Path::new(&key)).map(Some),
            None => Ok(None),
        }
    }

    /// Reads certificates that are trusted, the own one with its chain, and its key: PEM files of at most 1 MiB.
    ///
    /// # Errors
    /// Fails if a file can't be read, does not hold what it should, or the key is another certificate's.
    pub fn read(ca: &Path, cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = Files { ca: ca.to_owned(), cert: cert.to_owned(), key: key.to_owned() };
        Ok(Self(Arc::new(Renewed::new(files)?)))
    }

    /// How to answer connections that begin now. May read the files.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.0.get().server
    }

    /// How to begin connections now. May read the files.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.0.get().client
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The scheme of this stack's services: `https` where the environment names certificates, else `http`.
///
/// # Errors
/// Fails if it names some of the three files.
pub fn scheme() -> Result<&'static str, TlsError> {
    Ok(if given()?.is_some() { "https" } else { "http" })
}

/// The three paths, if they are given.
fn given() -> Result<Option<[OsString; 3]>, TlsError> {
    whole(|variable| std::env::var_os(variable).filter(|value| !value.is_empty()))
}

fn whole(value: impl Fn(&'static str) -> Option<OsString>) -> Result<Option<[OsString; 3]>, TlsError> {
    match [CA, CERT, KEY].map(|variable| value(variable).ok_or(variable)) {
        [Ok(ca), Ok(cert), Ok(key)] => Ok(Some([ca, cert, key])),
        values => {
            let given = [CA, CERT, KEY].into_iter().zip(&values).find(|(_, value)| value.is_ok());
            let missing = values.iter().find_map(|value| value.as_ref().err());
            match (missing, given) {
                (Some(missing), Some((given, _))) => Err(TlsError::Missing { missing, given }),
                _ => Ok(None),
            }
        }
    }
}

/// Where the certificates are.
#[derive(Debug)]
struct Files {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Clone)]
struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl renewed::Source for Files {
    type Content = [Vec<u8>; 3];
    type Value = Configs;
    type Error = TlsError;

    fn read(&self) -> Result<Self::Content, TlsError> {
        let read = |variable, path: &Path| {
            renewed::read(path, LARGEST).map_err(|source| TlsError::Read { variable, path: path.to_owned(), source })
        };
        Ok([read(CA, &self.ca)?, read(CERT, &self.cert)?, read(KEY, &self.key)?])
    }

    fn make(&self, [ca, cert, key]: &Self::Content) -> Result<Configs, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(CA, &self.ca, ca)? {
            roots.add(authority).map_err(|error| wrong(CA, &self.ca, format!("holds no authority: {error}")))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(CERT, &self.cert, cert)?;
        // Nothing of what the parser says: it quotes the file.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| wrong(KEY, &self.key, "holds no private key in PEM".to_owned()))?;

        let provider = Arc::new(default_provider());
        let server = server(&provider, &roots, chain.clone(), key.clone_key()).map_err(TlsError::Unfit)?;
        let client = client(&provider, roots, chain, key).map_err(TlsError::Unfit)?;
        Ok(Configs { server: Arc::new(server), client: Arc::new(client) })
    }
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let peers = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(peers)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    // Connections are few and live long: each proves anew who is at its ends.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn certificates(variable: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(variable, path, "holds no certificate in PEM".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(variable, path, format!("is no PEM: {error}"))),
    }
}

fn wrong(variable: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError::Content { variable, path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_files_are_named_or_none() {
        let of = |set: &[&'static str]| whole(|variable| set.contains(&variable).then(|| variable.into()));
        assert!(of(&[]).unwrap().is_none());
        assert_eq!(of(&[CA, CERT, KEY]).unwrap().unwrap(), [CA, CERT, KEY]);
        for (set, missing, given) in
            [(&[CA, CERT][..], KEY, CA), (&[KEY], CA, KEY), (&[CA, KEY], CERT, CA), (&[CERT, KEY], CA, CERT)]
        {
            let error = of(set).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{missing} is not set, but {given} is")), "{error}");
        }
    }

    #[test]
    fn each_file_must_hold_what_it_should_and_nothing_shows_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let refusal = || Tls::read(&ca, &cert, &key).unwrap_err().to_string();
        let own = rcgen::generate_simple_self_signed(["trainer".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["trainer".to_owned()]).unwrap();
        let (pem, secret) = (own.cert.pem(), own.signing_key.serialize_pem());
        for (file, variable) in [(&ca, CA), (&cert, CERT), (&key, KEY)] {
            let error = refusal();
            assert!(error.starts_with("cannot read") && error.contains(variable), "{error}");
            std::fs::write(file, &secret).unwrap();
        }
        for (file, variable) in [(&ca, CA), (&cert, CERT)] {
            let error = refusal();
            assert!(error.contains(variable) && error.contains("holds no certificate"), "{error}");
            std::fs::write(file, &pem).unwrap();
        }
        std::fs::write(&key, format!("-----BEGIN {}", &secret[30..])).unwrap();
        let error = refusal();
        assert!(error.contains(KEY) && error.contains("holds no private key"), "{error}");
        assert!(!error.contains(&secret[40..60]), "{error}");
        std::fs::write(&key, other.signing_key.serialize_pem()).unwrap();
        assert!(refusal().contains("can't be used together"), "{}", refusal());
        std::fs::write(&key, secret).unwrap();
        let tls = Tls::read(&ca, &cert, &key).unwrap();
        assert!(format!("{tls:?}").contains("key.pem") && !format!("{tls:?}").contains("BEGIN"), "{tls:?}");
    }
}

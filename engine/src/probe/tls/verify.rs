//! Whether a server's certificate is accepted, why not, and for how many days it is good.

use crate::check::CheckError;
use crate::probe::tls::settings::crypto;
use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate was not accepted: [`Detail`](crate::check::Detail)`::number` of an `L6CERT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CertificateFault {
    /// It has expired.
    Expired = 1,
    /// It is not valid yet.
    NotYetValid = 2,
    /// It is for another name.
    WrongName = 3,
    /// Its issuer is not trusted.
    UnknownIssuer = 4,
    /// It is none of the pinned ones.
    NotPinned = 5,
    /// It has been revoked. Never found at present: revocation lists are not read.
    Revoked = 6,
    /// It expires sooner than [`TlsSettings::cert_days_min`](super::TlsSettings::cert_days_min) allows.
    TooFewDays = 7,
    /// Anything else: not a certificate, not for servers, a signature that does not fit.
    Other = 8,
}

impl CertificateFault {
    /// All of them.
    pub const ALL: [CertificateFault; 8] = [
        CertificateFault::Expired,
        CertificateFault::NotYetValid,
        CertificateFault::WrongName,
        CertificateFault::UnknownIssuer,
        CertificateFault::NotPinned,
        CertificateFault::Revoked,
        CertificateFault::TooFewDays,
        CertificateFault::Other,
    ];

    /// The one with this number.
    pub fn of_number(number: u32) -> Option<CertificateFault> {
        CertificateFault::ALL.into_iter().find(|fault| fault.number() == number)
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// One sentence for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            CertificateFault::Expired => "The certificate has expired.",
            CertificateFault::NotYetValid => "The certificate is not valid yet.",
            CertificateFault::WrongName => "The certificate is for another name.",
            CertificateFault::UnknownIssuer => "The certificate's issuer is not trusted.",
            CertificateFault::NotPinned => "The certificate is none of the pinned ones.",
            CertificateFault::Revoked => "The certificate has been revoked.",
            CertificateFault::TooFewDays => "The certificate expires too soon.",
            CertificateFault::Other => "The certificate is not valid.",
        }
    }

    fn of(error: &CertificateError) -> CertificateFault {
        use CertificateError as E;
        match error {
            E::Expired | E::ExpiredContext { .. } => CertificateFault::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => CertificateFault::NotYetValid,
            E::NotValidForName | E::NotValidForNameContext { .. } => CertificateFault::WrongName,
            // A signature in the chain does not fit: the issuer has a trusted one's name, but not its key.
            E::UnknownIssuer | E::BadSignature => CertificateFault::UnknownIssuer,
            E::Revoked => CertificateFault::Revoked,
            _ => CertificateFault::Other,
        }
    }
}

/// SHA-256 of a certificate or of a public key that is trusted, written as `cert:HEX` or `key:HEX`; colons within HEX
/// are left out. `openssl x509 -noout -fingerprint -sha256` shows the first,
/// `openssl x509 -noout -pubkey | openssl pkey -pubin -outform der | sha256sum` the second.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pin {
    /// Of the certificate, DER. Changes with each renewal.
    Certificate([u8; 32]),
    /// Of its SubjectPublicKeyInfo, DER (RFC 7469, 2.4). Stays as long as the key does.
    Key([u8; 32]),
}

impl FromStr for Pin {
    type Err = CheckError;
    fn from_str(text: &str) -> Result<Pin, CheckError> {
        let parse = || {
            let (kind, hex) = text.split_once(':')?;
            let hex: String = hex.chars().filter(|c| *c != ':').collect();
            if hex.len() != 64 || !hex.is_ascii() {
                return None;
            }
            let mut hash = [0; 32];
            for (place, byte) in hash.iter_mut().enumerate() {
                *byte = u8::from_str_radix(hex.get(place * 2..place * 2 + 2)?, 16).ok()?;
            }
            match kind {
                "cert" => Some(Pin::Certificate(hash)),
                "key" => Some(Pin::Key(hash)),
                _ => None,
            }
        };
        parse().ok_or_else(|| CheckError::new("tls.pins", text, "must be cert:HEX or key:HEX, a SHA-256 of 64 digits"))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, hash) = match self {
            Pin::Certificate(hash) => ("cert", hash),
            Pin::Key(hash) => ("key", hash),
        };
        write!(f, "{kind}:")?;
        hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// [`Trust`](super::Trust), ready to judge.
#[derive(Debug)]
pub(super) enum Trusted {
    Chains {
        verifier: Arc<WebPkiServerVerifier>,
        /// Certificates that are trusted as they are, besides those they have signed. webpki takes none for a server's
        /// that says it is a CA's, but that is what `openssl req -x509` makes.
        themselves: Vec<CertificateDer<'static>>,
    },
    Pinned(Vec<Pin>),
    Everything,
}

/// What was seen of a server's certificate in one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) cert_days: Option<i16>,
    pub(super) fault: Option<CertificateFault>,
}

/// Judges one session's certificate, and remembers it.
#[derive(Debug)]
pub(super) struct Witness {
    trusted: Arc<Trusted>,
    cert_days_min: Option<i16>,
    seen: OnceLock<Seen>,
}

impl Witness {
    pub(super) fn new(trusted: Arc<Trusted>, cert_days_min: Option<i16>) -> Witness {
        Witness { trusted, cert_days_min, seen: OnceLock::new() }
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.get().copied().unwrap_or_default()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> (Option<i16>, Result<(), Error>) {
        let parsed = X509Certificate::from_der(leaf).ok().map(|(_, parsed)| parsed);
        let cert_days = parsed.as_ref().map(|parsed| days(parsed.validity().not_after.timestamp(), now));
        let fault = |error| Err(Error::InvalidCertificate(error));
        let verdict = match &*self.trusted {
            Trusted::Chains { themselves, .. } if themselves.contains(leaf) => match parsed.as_ref() {
                Some(parsed) if now.as_secs() as i64 > parsed.validity().not_after.timestamp() => {
                    fault(CertificateError::Expired)
                }
                Some(parsed) if (now.as_secs() as i64) < parsed.validity().not_before.timestamp() => {
                    fault(CertificateError::NotValidYet)
                }
                _ => ParsedCertificate::try_from(leaf).and_then(|parsed| verify_server_name(&parsed, name)),
            },
            Trusted::Chains { verifier, .. } => {
                let verified = verifier.verify_server_cert(leaf, chain, name, ocsp, now).map(|_verified| ());
                let is_own = parsed.as_ref().is_some_and(|parsed| parsed.subject() == parsed.issuer());
                match verified {
                    // webpki says of a self-signed CA that it is no server's; people know it as an unknown one.
                    Err(Error::InvalidCertificate(CertificateError::Other(_))) if is_own => {
                        fault(CertificateError::UnknownIssuer)
                    }
                    verified => verified,
                }
            }
            Trusted::Pinned(pins) => {
                let hash = |bytes: &[u8]| -> [u8; 32] {
                    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
                };
                let certificate = Pin::Certificate(hash(leaf));
                let key = parsed.as_ref().map(|parsed| Pin::Key(hash(parsed.tbs_certificate.subject_pki.raw)));
                match pins.iter().any(|pin| *pin == certificate || Some(*pin) == key) {
                    true => Ok(()),
                    false => fault(CertificateError::ApplicationVerificationFailure),
                }
            }
            Trusted::Everything => Ok(()),
        };
        (cert_days, verdict)
    }
}

/// Whole days from `now` to `then`, rounded down: -1 on the day after.
fn days(then: i64, now: UnixTime) -> i16 {
    let seconds = then.saturating_sub(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    seconds.div_euclid(86_400).clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (cert_days, mut verdict) = self.judge(leaf, chain, name, ocsp, now);
        let mut fault = match (&verdict, &*self.trusted) {
            (Ok(()), _) => None,
            (Err(_), Trusted::Pinned(_)) => Some(CertificateFault::NotPinned),
            (Err(Error::InvalidCertificate(error)), _) => Some(CertificateFault::of(error)),
            (Err(_), _) => Some(CertificateFault::Other),
        };
        if let (Some(min), None) = (self.cert_days_min, fault)
            && cert_days.is_none_or(|days| days < min)
        {
            fault = Some(cert_days.map_or(CertificateFault::Other, |_| CertificateFault::TooFewDays));
            verdict = Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        // A second certificate in one session does not happen: rustls refuses renegotiation.
        let _first = self.seen.set(Seen { cert_days, fault });
        verdict.map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if matches!(*self.trusted, Trusted::Everything) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &crypto().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if matches!(*self.trusted, Trusted::Everything) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &crypto().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto().signature_verification_algorithms.supported_schemes()
    }
}

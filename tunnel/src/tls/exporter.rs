//! The channel binding of a TLS 1.3 connection: `tls-exporter` of RFC 9266, computed from the exporter secret.
//!
//! rustls gives exporters on its buffered connections; the unbuffered ones, which decrypt in the caller's memory, have
//! no such method in 0.23. What they do have is [`rustls::KeyLog`], which is shown the exporter secret once, when the
//! handshake completes. From there it is two HKDF expansions (RFC 8446 §7.5). A test compares the outcome with rustls'
//! own exporter at the other end.

use ring::digest::{SHA256, SHA384, digest};
use ring::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Bytes of a channel binding (RFC 9266 §2).
pub const BINDING_BYTES: usize = 32;

/// What ties a signature to one connection; all zeroes where there is no TLS to tie it to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Binding(pub(crate) [u8; BINDING_BYTES]);

impl Binding {
    /// The binding of a connection without TLS.
    pub const NONE: Binding = Binding([0; BINDING_BYTES]);
}

/// Derived from a secret, and of use to nobody else: not shown.
impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Binding::NONE { "Binding(none)" } else { "Binding(***)" })
    }
}

/// Takes the channel binding of one connection as its keys go by. A connection has its own.
#[derive(Default)]
pub(super) struct Tap {
    binding: OnceLock<Binding>,
}

impl Tap {
    /// One for a connection's config, and the same to ask later.
    pub(super) fn new() -> Arc<Tap> {
        Arc::default()
    }

    /// The binding, once the handshake is complete.
    pub(super) fn binding(&self) -> Option<Binding> {
        self.binding.get().copied()
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap(***)")
    }
}

/// The NSS label of the TLS 1.3 exporter secret.
const EXPORTER_SECRET: &str = "EXPORTER_SECRET";

impl rustls::KeyLog for Tap {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if label == EXPORTER_SECRET
            && let Some(binding) = tls_exporter(secret)
        {
            // A second secret on one connection does not happen; the first is the one both ends saw.
            let _ = self.binding.set(binding);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == EXPORTER_SECRET
    }
}

/// RFC 8446 §7.5 with the label of RFC 9266 §2 and an empty context. The length of the secret tells the hash of the
/// cipher suite.
fn tls_exporter(secret: &[u8]) -> Option<Binding> {
    let (hkdf, hash) = match secret.len() {
        32 => (HKDF_SHA256, &SHA256),
        48 => (HKDF_SHA384, &SHA384),
        _ => return None,
    };
    let empty = digest(hash, b"");
    let mut derived = [0u8; 48];
    let derived = &mut derived[..secret.len()];
    expand_label(&Prk::new_less_safe(hkdf, secret), b"EXPORTER-Channel-Binding", empty.as_ref(), derived)?;
    let mut binding = [0; BINDING_BYTES];
    expand_label(&Prk::new_less_safe(hkdf, derived), b"exporter", empty.as_ref(), &mut binding)?;
    Some(Binding(binding))
}

struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label (RFC 8446 §7.1).
fn expand_label(prk: &Prk, label: &[u8], context: &[u8], out: &mut [u8]) -> Option<()> {
    let length = u16::try_from(out.len()).ok()?.to_be_bytes();
    let label_length = [u8::try_from(b"tls13 ".len() + label.len()).ok()?];
    let context_length = [u8::try_from(context.len()).ok()?];
    let info: [&[u8]; 6] = [&length, &label_length, b"tls13 ", label, &context_length, context];
    let okm: hkdf::Okm<'_, Bytes> = prk.expand(&info, Bytes(out.len())).ok()?;
    okm.fill(out).ok()
}

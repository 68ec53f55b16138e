//! Handing a connection's keys to the kernel, which makes and opens the records from then on.
//!
//! ```text
//!   handshake (rustls) ──▶ quiet: nothing read that was not used, nothing written that was not sent
//!                             └──▶ keys to the kernel; the socket now carries plaintext
//! ```
//! Each end decides for itself: on the wire nothing changes. The moment comes by itself right after the handshake: the
//! agent has sent its last message and waits for the bridge's first frame, and the bridge has read that message and
//! nothing behind it, since an agent speaks only when spoken to. There are no tickets that could come between
//! ([`config`](super::config)). A connection that is not quiet then stays with rustls: correct, and slower.

use super::session::Connection;
use super::{Kind, Plain, Session, Tls};
use ringspan_engine::kernel::Socket;
use ringspan_engine::kernel::ktls::{self, Direction, KernelTls, Secret, Suite};
use rustls::{CipherSuite, ConnectionTrafficSecrets};
use std::fmt;

/// What is in force once the kernel has the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// The cipher.
    pub suite: Suite,
    /// A pipe may be spliced into the socket.
    pub splice_out: bool,
    /// The socket may be spliced into a pipe.
    pub splice_in: bool,
}

/// Why the kernel does not have the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The handshake is not over, or bytes are between the socket and their user: ask again when they have gone.
    NotNow,
    /// Not on this connection, which goes on as it is. The reason is for people.
    Never(String),
    /// The keys were taken from rustls, and the kernel did not take them: the connection is lost.
    Broken(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NotNow => f.write_str("bytes are on their way"),
            Refused::Never(why) | Refused::Broken(why) => f.write_str(why),
        }
    }
}

/// Whether a connection may be handed over: what the kernel can do, or why not.
pub(super) type Permit = Result<&'static KernelTls, String>;

/// The permit of this process, if the configuration allows it.
pub(super) fn permit(allowed: bool) -> Permit {
    match ktls::look() {
        _ if !allowed => Err("ktls = \"off\"".into()),
        Ok(kernel) => Ok(kernel),
        Err(why) => Err(why.clone()),
    }
}

impl Tls {
    /// Gives the keys to the kernel: from then on `socket` carries plaintext, this value has no more part in it, and
    /// [`is_plain`](Tls::is_plain) holds. `socket` must be the one whose bytes this value has seen.
    ///
    /// # Errors
    /// See [`Refused`]. After `Broken` only dropping is left.
    pub fn hand_to_kernel(&mut self, socket: &Socket) -> Result<Offload, Refused> {
        match &self.kind {
            Kind::Plain(_) => Err(Refused::Never("no TLS".into())),
            Kind::Kernel(_) => Err(Refused::Never("the kernel has the keys already".into())),
            Kind::Server(session) => {
                let kernel = session.ready(socket)?;
                self.take(kernel, socket)
            }
            Kind::Client(session) => {
                let kernel = session.ready(socket)?;
                self.take(kernel, socket)
            }
        }
    }

    /// The point of no return: rustls' connection becomes its keys.
    fn take(&mut self, (kernel, suite): (&'static KernelTls, Suite), socket: &Socket) -> Result<Offload, Refused> {
        let binding = self.binding();
        let secrets = match std::mem::replace(&mut self.kind, Kind::Plain(Plain::default())) {
            Kind::Server(session) => session.into_secrets(),
            Kind::Client(session) => session.into_secrets(),
            Kind::Plain(_) | Kind::Kernel(_) => unreachable!("the caller has just looked"),
        };
        self.kind = Kind::Kernel(binding);
        let broken = |error: &dyn fmt::Display| Refused::Broken(format!("handing the keys to the kernel: {error}"));
        let secrets = secrets.map_err(|error| broken(&error))?;
        for (direction, (sequence, secret)) in [(Direction::Send, &secrets.tx), (Direction::Receive, &secrets.rx)] {
            let (key, iv) = match secret {
                ConnectionTrafficSecrets::Aes128Gcm { key, iv }
                | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
                | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key.as_ref(), iv.as_ref()),
                _ => return Err(broken(&"a cipher that nobody offered")),
            };
            let iv = iv.try_into().map_err(|_| broken(&"a nonce of another length than 12"))?;
            socket
                .set_tls_key(direction, &Secret { suite, key, iv, sequence: *sequence })
                .map_err(|error| broken(&error))?;
        }
        Ok(Offload { suite, splice_out: kernel.splice_out, splice_in: kernel.splice_in })
    }
}

impl<C: Connection> Session<C> {
    /// Whether it can be handed over now; makes the socket ready for it.
    fn ready(&self, socket: &Socket) -> Result<(&'static KernelTls, Suite), Refused> {
        let kernel = *self.permit().as_ref().map_err(|why| Refused::Never(why.clone()))?;
        if !self.is_quiet() {
            return Err(Refused::NotNow);
        }
        let suite = match self.suite() {
            Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => Suite::Aes128Gcm,
            Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => Suite::Aes256Gcm,
            Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => Suite::ChaCha20Poly1305,
            other => return Err(Refused::Never(format!("{other:?} is no cipher the kernel could know"))),
        };
        if !kernel.suites.contains(&suite) {
            return Err(Refused::Never(format!("this kernel's TLS has no {suite}")));
        }
        // Changes nothing for the bytes: without keys they pass as they are.
        socket.attach_tls().map_err(|error| Refused::Never(format!("TCP_ULP: {error}")))?;
        Ok((kernel, suite))
    }
}

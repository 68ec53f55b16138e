//! TLS 1.3 records made and opened by the kernel (kTLS, Documentation/networking/tls.rst): a connected TCP socket is
//! given the keys that a handshake in user space agreed on, and from then on send, recv and splice carry plaintext.
//! Promise: what a kernel can do of this is found by trying ([`look`]), never by its version; a key never prints.
//!
//! ```text
//!   attach ──▶ set_key(Send), set_key(Receive) ──▶ send, recv, splice: application data
//!                                                  recv fails with EIO, splice with EINVAL: another kind of record is
//!                                                  next; receive_record reads it, then the data goes on
//! ```
//! A key is set once: kernels before 6.14 take no second one (net/tls/tls_main.c, EBUSY). Nothing takes one away.

use super::socket::{Shutdown, Socket, check_size, set_option};
use std::io;
use std::mem;
use std::ptr;

mod look;

pub use look::{KTLS_VARIABLE, KernelTls, look};

/// include/linux/socket.h and include/uapi/linux/tls.h, which the libc crate does not have.
const TLS_SEND: i32 = 1;
const TLS_RECEIVE: i32 = 2;
const TLS_RX_EXPECT_NO_PAD: i32 = 4;
const TLS_SET_RECORD_TYPE: i32 = 1;
const TLS_GET_RECORD_TYPE: i32 = 2;
const TLS_1_3_VERSION: u16 = 0x0304;

/// Content types of records (RFC 8446 §5.1).
pub mod record {
    /// Alerts; close_notify is one.
    pub const ALERT: u8 = 21;
    /// Messages after the handshake: key updates, tickets.
    pub const HANDSHAKE: u8 = 22;
    /// Application data.
    pub const DATA: u8 = 23;
}

/// The two bytes of a close_notify alert (RFC 8446 §6.1): level "warning", which means nothing in 1.3, and the
/// description.
pub const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// Whether recv or splice stopped because the next record is no application data: [`Socket::receive_record`] reads it.
/// recv says EIO, splice EINVAL (net/tls/tls_sw.c).
pub fn is_other_record(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}

/// Most plaintext in one record (RFC 8446 §5.1).
pub const RECORD_BYTES_MAX: usize = 16 << 10;

/// A cipher suite that some kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// TLS_AES_128_GCM_SHA256: every kernel with TLS 1.3 (5.1).
    Aes128Gcm,
    /// TLS_AES_256_GCM_SHA384: from 5.1.
    Aes256Gcm,
    /// TLS_CHACHA20_POLY1305_SHA256: from 5.11.
    ChaCha20Poly1305,
}

impl Suite {
    /// All of them, in the order in which links prefer them.
    pub const ALL: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    /// Bytes of its key.
    pub const fn key_bytes(self) -> usize {
        match self {
            Suite::Aes128Gcm => 16,
            Suite::Aes256Gcm | Suite::ChaCha20Poly1305 => 32,
        }
    }

    /// Its name in logs and `doctor`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Suite::Aes128Gcm => "AES-128-GCM",
            Suite::Aes256Gcm => "AES-256-GCM",
            Suite::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        }
    }
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What we write is encrypted.
    Send,
    /// What we read is decrypted.
    Receive,
}

/// What the kernel needs to go on with one direction. Prints without its secrets.
#[derive(Clone, Copy)]
pub struct Secret<'a> {
    /// Which cipher.
    pub suite: Suite,
    /// [`Suite::key_bytes`] bytes.
    pub key: &'a [u8],
    /// The static nonce (RFC 8446 §5.3).
    pub iv: &'a [u8; 12],
    /// Number of the next record under this key.
    pub sequence: u64,
}

impl std::fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({}, ***, record {})", self.suite, self.sequence)
    }
}

/// `struct tls_crypto_info` and what follows it, for each cipher (include/uapi/linux/tls.h). Longest first would gain
/// nothing: the length that setsockopt(2) is given must be exactly the cipher's.
#[repr(C)]
#[derive(Clone, Copy)]
struct Aes<const KEY: usize> {
    version: u16,
    cipher: u16,
    iv: [u8; 8],
    key: [u8; KEY],
    salt: [u8; 4],
    sequence: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ChaCha {
    version: u16,
    cipher: u16,
    iv: [u8; 12],
    key: [u8; 32],
    sequence: [u8; 8],
}

const _: () = assert!(mem::size_of::<Aes<16>>() == 40 && mem::size_of::<Aes<32>>() == 56);
const _: () = assert!(mem::size_of::<ChaCha>() == 56);

impl<const KEY: usize> Aes<KEY> {
    /// The kernel calls the first four bytes of the nonce its salt.
    fn new(cipher: u16, secret: &Secret<'_>) -> io::Result<Aes<KEY>> {
        let (salt, iv) = secret.iv.split_at(4);
        Ok(Aes {
            version: TLS_1_3_VERSION,
            cipher,
            iv: iv.try_into().expect("eight bytes are left of twelve"),
            key: secret.key.try_into().map_err(|_| invalid("the key's length is not the cipher's"))?,
            salt: salt.try_into().expect("four bytes were split off"),
            sequence: secret.sequence.to_be_bytes(),
        })
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// What [`Socket::receive_record`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Content type: see [`record`].
    pub kind: u8,
    /// How many bytes of it are in the buffer. 0 with [`record::DATA`] is the end of the stream.
    pub len: usize,
}

impl Socket {
    /// Makes the socket one that can take keys (TCP_ULP "tls"). Until it has one, bytes pass as they are. It must be
    /// connected.
    ///
    /// # Errors
    /// ENOENT: the kernel has no module `tls`, or we may not load it. ENOTCONN: not connected. EEXIST: done already.
    /// EOPNOTSUPP, ENOPROTOOPT: not a TCP socket.
    pub fn attach_tls(&self) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_ULP, *b"tls\0")
    }

    /// Gives one direction to the kernel. For [`Direction::Receive`] the next byte in the socket's queue must be the
    /// first of record number `sequence`; for [`Direction::Send`] all records before it must have been sent.
    ///
    /// # Errors
    /// EINVAL: this kernel does not know the cipher. ENOENT: it lacks the algorithm's module (gcm, ghash). EBUSY: the
    /// direction has a key. `InvalidInput`: the key's length is wrong.
    pub fn set_tls_key(&self, direction: Direction, secret: &Secret<'_>) -> io::Result<()> {
        let name = match direction {
            Direction::Send => TLS_SEND,
            Direction::Receive => TLS_RECEIVE,
        };
        match secret.suite {
            Suite::Aes128Gcm => self.set(libc::SOL_TLS, name, Aes::<16>::new(51, secret)?),
            Suite::Aes256Gcm => self.set(libc::SOL_TLS, name, Aes::<32>::new(52, secret)?),
            Suite::ChaCha20Poly1305 => {
                let info = ChaCha {
                    version: TLS_1_3_VERSION,
                    cipher: 54,
                    iv: *secret.iv,
                    key: secret.key.try_into().map_err(|_| invalid("the key's length is not the cipher's"))?,
                    sequence: secret.sequence.to_be_bytes(),
                };
                self.set(libc::SOL_TLS, name, info)
            }
        }?;
        if direction == Direction::Receive {
            // Lets recv(2) decrypt straight into our memory (6.0). A peer that pads is read all the same, at the price
            // of a second pass; older kernels say that they do not know the option.
            let _ = set_option(self.raw(), libc::SOL_TLS, TLS_RX_EXPECT_NO_PAD, 1i32);
        }
        Ok(())
    }

    /// Sends one record of this kind, application data excepted, behind everything that was sent before.
    ///
    /// # Errors
    /// `WouldBlock`, EPIPE, ECONNRESET.
    pub fn send_record(&self, kind: u8, body: &[u8]) -> io::Result<usize> {
        let mut control = Control::new();
        let mut io = libc::iovec { iov_base: body.as_ptr().cast_mut().cast(), iov_len: body.len() };
        // SAFETY: msghdr is plain integers and pointers; all zeroes is a value of it.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut io;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN compute from an integer. CMSG_FIRSTHDR looks at `message`, whose control
        // buffer is `control`: aligned as a cmsghdr, and with room for one with one byte.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(1) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_TLS;
            (*header).cmsg_type = TLS_SET_RECORD_TYPE;
            (*header).cmsg_len = libc::CMSG_LEN(1) as _;
            *libc::CMSG_DATA(header) = kind;
        }
        // SAFETY: `message` points to `io` and `control`, and `io` to `body`; all outlive the call, and sendmsg(2)
        // writes to none of them.
        check_size(unsafe { libc::sendmsg(self.raw(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
    }

    /// Receives what is next, whatever its kind: the first record's, or of several data records as much as fits.
    ///
    /// # Errors
    /// `WouldBlock`. EBADMSG: a record was forged or damaged; EMSGSIZE: one is too long. ECONNRESET and the like.
    pub fn receive_record(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut control = Control::new();
        let mut io = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: msghdr is plain integers and pointers; all zeroes is a value of it.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut io;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control.bytes) as _;
        // SAFETY: `message` points to `io` and `control`, and `io` to `buffer`, each with its length; all outlive the
        // call.
        let len = check_size(unsafe { libc::recvmsg(self.raw(), &raw mut message, libc::MSG_DONTWAIT) })?;
        let mut kind = record::DATA;
        // SAFETY: the kernel has written whole control messages into `control` and set `msg_controllen` to their
        // length; the CMSG macros stay within it, and a record type's data is one byte.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_TLS && (*header).cmsg_type == TLS_GET_RECORD_TYPE {
                    kind = ptr::read(libc::CMSG_DATA(header));
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
        }
        Ok(Received { kind, len })
    }

    /// Says that we write no more (close_notify), then FIN: an end that nobody on the way can forge, on a socket whose
    /// sending direction has a key. Errors are dropped: a peer that misses the word sees a cut.
    pub fn shutdown_tls(&self) {
        let _ = self.send_record(record::ALERT, &CLOSE_NOTIFY);
        self.shutdown(Shutdown::Write);
    }
}

/// Room for one control message, aligned as one.
#[repr(C)]
struct Control {
    _align: [libc::cmsghdr; 0],
    bytes: [u8; 64],
}

impl Control {
    fn new() -> Control {
        Control { _align: [], bytes: [0; 64] }
    }
}

#[cfg(test)]
mod tests;

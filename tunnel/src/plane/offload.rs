//! A carrier whose TLS records the kernel makes: when it takes over, and what comes beside data.
//!
//! From then on the carrier is read and written like one without TLS. Two things differ. Reading stops at a record that
//! is no data (an alert, a message of the handshake): recv says EIO, splice EINVAL, and the record is read by itself.
//! And the keys wear out: see [`Wear`](crate::tls::Wear).

use super::carrier::{Carrier, Lost, Phase};
use super::{Event, Plane};
use crate::frame::Reason;
use crate::slots::Key;
use crate::tls::Refused;
use ringspan_engine::kernel::Pipe;
use ringspan_engine::kernel::ktls::{CLOSE_NOTIFY, RECORD_BYTES_MAX, is_other_record, record};
use std::io::{self, ErrorKind};

/// Messages of the handshake (RFC 8446 §4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

impl Plane {
    /// Gives the carrier's keys to the kernel if that is possible and the moment is quiet. Asked after each read and
    /// write of the handshake; once the carrier is up it stays as it is.
    pub(super) fn try_offload(&mut self, key: Key) -> Result<(), Lost> {
        let Some(c) = self.carriers.get_mut(key).filter(|c| !c.offload_settled && c.phase == Phase::Hello) else {
            return Ok(());
        };
        let Some(tls) = c.tls.as_mut().filter(|tls| !tls.is_handshaking()) else { return Ok(()) };
        match tls.hand_to_kernel(&c.socket) {
            Ok(offload) => {
                (c.plain, c.records, c.offload_settled) = (true, true, true);
                (c.splice_out, c.splice_in) = (offload.splice_out, offload.splice_in);
                self.stats.carriers_ktls.add(1);
                let (splice_out, splice_in) = (offload.splice_out, offload.splice_in);
                tracing::debug!(suite = %offload.suite, splice_out, splice_in, "the kernel encrypts this carrier");
            }
            Err(Refused::NotNow) => {}
            Err(Refused::Never(why)) => {
                c.offload_settled = true;
                tracing::debug!(why, "this carrier is encrypted in user space");
            }
            Err(Refused::Broken(why)) => return Err(Lost { reason: Reason::LinkLost, detail: why }),
        }
        Ok(())
    }

    /// A carrier whose keys have done most of what they may is given up for a new one, in peace.
    pub(super) fn look_at_wear(&mut self, key: Key) {
        let Some(c) = self.carriers.get_mut(key).filter(|c| c.phase == Phase::Up && c.is_framed()) else { return };
        let is_worn = match (c.records, c.plain) {
            (true, _) => c.wear_in.is_worn() || c.wear_out.is_worn(),
            (false, true) => false,
            (false, false) => c.wear_out.is_worn_by_records(),
        };
        if is_worn {
            (c.wear_in, c.wear_out) = (c.wear_in.told(), c.wear_out.told());
            self.events.push(Event::Worn { carrier: key });
        }
    }
}

impl Carrier {
    /// recv(2), past whatever is no data. `None`: nothing there now.
    pub(super) fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Lost> {
        loop {
            match self.socket.recv(buffer) {
                Err(error) if self.records && is_other_record(&error) => {
                    if let Some(n) = self.recv_record(buffer)? {
                        return Ok(Some(n));
                    }
                }
                result => {
                    let n = received(result)?;
                    self.wear_in.add(n.unwrap_or(0));
                    return Ok(n);
                }
            }
        }
    }

    /// Fills the pipe from the socket, past whatever is no data. `None`: nothing there now.
    pub(super) fn splice_from(&mut self, pipe: &Pipe, len: usize) -> Result<Option<usize>, Lost> {
        loop {
            match pipe.fill(&self.socket, len) {
                Err(error) if self.records && is_other_record(&error) => {
                    // Data would only be there if the kernel had stopped for no reason; it has nowhere to go.
                    if self.recv_record(&mut [0; RECORD_BYTES_MAX])?.is_some() {
                        return Err(error.into());
                    }
                }
                result => {
                    let n = received(result)?;
                    self.wear_in.add(n.unwrap_or(0));
                    return Ok(n);
                }
            }
        }
    }

    /// Reads the record that recv stopped at. `None`: it was dealt with. `Some`: it is data after all.
    fn recv_record(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Lost> {
        let broken = |detail: String| Err(Lost { reason: Reason::LinkLost, detail });
        let received = match self.socket.receive_record(buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(None),
            result => result?,
        };
        let body = &buffer[..received.len];
        match (received.kind, body) {
            (record::DATA, []) => Err(Lost::end()),
            (record::DATA, _) => Ok(Some(received.len)),
            (record::ALERT, [_, 0]) => {
                self.said_end = true;
                Err(Lost::end())
            }
            (record::ALERT, [_, alert]) => broken(format!("the peer ended TLS with alert {alert} (RFC 8446 §6)")),
            (record::HANDSHAKE, [NEW_SESSION_TICKET, ..]) => Ok(None),
            (record::HANDSHAKE, [KEY_UPDATE, ..]) => broken(
                "the peer changes its TLS keys, and the kernel that reads them takes no new ones: reconnect".into(),
            ),
            (kind, _) => broken(format!("the peer broke TLS: a record of type {kind} after the handshake")),
        }
    }

    /// Counts what was written; a carrier whose keys are worn out is over.
    pub(super) fn wrote(&mut self, n: usize) -> Result<(), Lost> {
        self.wear_out.add(n);
        self.has_sent |= n > 0;
        if self.records && self.wear_out.is_over() {
            let detail = "the TLS keys have encrypted as much as they may: reconnect".into();
            return Err(Lost { reason: Reason::LinkLost, detail });
        }
        Ok(())
    }

    /// Sends what TCP holds back for more to come. A record that fills up in the middle of a splice is queued with "more
    /// follows" (MSG_SENDPAGE_NOTLAST), and when the send buffer is then full, kernel TLS returns without sending it, as
    /// TCP by itself would (net/tls/tls_sw.c, tls_sw_do_sendpage, against net/ipv4/tcp.c, do_tcp_sendpages). With
    /// nothing in flight no acknowledgement comes to free the buffer, and the carrier stands still until it is given up:
    /// seen on 6.1 where memory for TCP was short, which makes send buffers shrink.
    pub(super) fn push(&self) {
        // Setting it again flushes (tcp(7)); a failure shows at the next write.
        let _ = self.socket.set_nodelay();
    }

    /// Says that nothing more comes (close_notify), as far as the socket takes it.
    pub(super) fn say_goodbye(&mut self) {
        if self.records {
            let _ = self.socket.send_record(record::ALERT, &CLOSE_NOTIFY);
        } else if let Some(tls) = &mut self.tls
            && tls.is_encrypted()
            && tls.outgoing().is_empty()
        {
            tls.close();
            let _ = self.socket.send(tls.outgoing(), false);
        }
    }
}

/// `None`: nothing there now. The end of a carrier's stream is always a loss.
pub(super) fn received(result: io::Result<usize>) -> Result<Option<usize>, Lost> {
    match result {
        Ok(0) => Err(Lost::end()),
        Ok(n) => Ok(Some(n)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

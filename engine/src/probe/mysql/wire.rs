//! Packets on a byte stream: three bytes of length, one of sequence, the payload.
//! Promise: keeps at most [`PACKET_BYTES_MAX`] of a packet and what came with one read after it, and reads packets of at
//! most [`CONVERSATION_BYTES_MAX`] together from one server, whatever lengths are announced.
//! Uses `mysql_common`'s chunk decoder.

use bytes::BytesMut;
use mysql_common::proto::codec::{ChunkDecoder, ChunkInfo};

/// The longest packet that is read. Greetings have 100 bytes, descriptions of columns some hundreds; a row of a check's
/// answer has no reason to be longer.
pub(super) const PACKET_BYTES_MAX: usize = 16 * 1024;
/// What one server may say in one check: four of the longest packets.
pub(super) const CONVERSATION_BYTES_MAX: usize = 64 * 1024;

/// Why a stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A packet longer than [`PACKET_BYTES_MAX`] was announced, or all of them exceed [`CONVERSATION_BYTES_MAX`].
    TooMuch,
    /// A sequence number that was not its turn.
    OutOfOrder,
}

/// Both directions of one connection.
#[derive(Debug, Default)]
pub(super) struct Packets {
    unread: BytesMut,
    decoder: ChunkDecoder,
    /// Of the next packet, whoever sends it.
    sequence: u8,
    read_bytes: usize,
}

impl Packets {
    /// Bytes came. Whoever calls reads [`next`](Packets::next) until there is none, so that they do not pile up.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next whole packet, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        let mut packet = Vec::new();
        match self.decoder.decode(&mut self.unread, &mut packet, PACKET_BYTES_MAX) {
            Err(_) | Ok(Some(ChunkInfo::Middle(_))) => Err(Broken::TooMuch),
            Ok(None) => Ok(None),
            Ok(Some(ChunkInfo::Last(sequence))) => {
                // Errors that a server sends on its own account (too many connections, shutting down) come numbered
                // as they like, and are the packets most worth reading.
                if sequence != self.sequence && packet.first() != Some(&0xff) {
                    return Err(Broken::OutOfOrder);
                }
                self.sequence = sequence.wrapping_add(1);
                self.read_bytes += packet.len() + 4;
                if self.read_bytes > CONVERSATION_BYTES_MAX {
                    return Err(Broken::TooMuch);
                }
                Ok(Some(packet))
            }
        }
    }

    /// Puts a packet that answers the last one into `say`. Payloads are ours and shorter than 16 MB.
    pub(super) fn say(&mut self, payload: &[u8], say: &mut Vec<u8>) {
        let header = u32::try_from(payload.len()).expect("our own packets are short") | u32::from(self.sequence) << 24;
        say.extend_from_slice(&header.to_le_bytes());
        say.extend_from_slice(payload);
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// Puts a packet that begins a new exchange into `say`.
    pub(super) fn say_command(&mut self, payload: &[u8], say: &mut Vec<u8>) {
        self.sequence = 0;
        self.say(payload, say);
    }

    /// Whether the stream stands at the end of a packet.
    pub(super) fn is_at_rest(&self) -> bool {
        self.unread.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mysql_common::proto::codec::PacketCodec;
    use proptest::prelude::*;

    fn heard(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Broken> {
        let mut packets = Packets::default();
        packets.hear(bytes);
        let mut all = Vec::new();
        while let Some(packet) = packets.next()? {
            all.push(packet);
        }
        Ok(all)
    }

    /// Lengths, sequences and the exception for errors.
    #[test]
    fn what_is_read_and_what_is_not() {
        /// Bytes, and the packets in them.
        type Row<'a> = (&'a [u8], Result<&'a [&'a [u8]], Broken>);
        let table: [Row<'_>; 8] = [
            (b"\x01\0\0\0a", Ok(&[b"a"])),
            (b"\x01\0\0\0a\0\0\0\x01\x02\0\0\x02bc", Ok(&[b"a", b"", b"bc"])),
            (b"\x02\0\0\0a", Ok(&[])),
            (b"\x01\0\0\x01a", Err(Broken::OutOfOrder)),
            (b"\x01\0\0\0a\x01\0\0\0b", Err(Broken::OutOfOrder)),
            (b"\x01\0\0\x05\xff", Ok(&[b"\xff"])),
            (b"\xff\xff\xff\0", Err(Broken::TooMuch)),
            (b"\x01\x40\0\0", Err(Broken::TooMuch)),
        ];
        for (bytes, expected) in table {
            let expected = expected.map(|packets| packets.iter().map(|packet| packet.to_vec()).collect::<Vec<_>>());
            assert_eq!(heard(bytes), expected, "{}", bytes.escape_ascii());
        }
        let errors = b"\x01\0\0\0\xff".repeat(CONVERSATION_BYTES_MAX / 5);
        assert_eq!(heard(&errors).map(|packets| packets.len()), Ok(CONVERSATION_BYTES_MAX / 5));
        assert_eq!(heard(&[&errors[..], b"\x01\0\0\0\xff"].concat()), Err(Broken::TooMuch));
    }

    proptest! {
        /// What we say is what mysql_common's own codec reads, and the other way round, with answers in between.
        #[test]
        fn we_speak_as_the_reference_does(
            exchange in proptest::collection::vec((any::<bool>(), proptest::collection::vec(0u8..0xfe, 0..300)), 1..300),
        ) {
            let (mut ours, mut theirs) = (Packets::default(), PacketCodec::default());
            let mut volume = 0;
            for (from_us, payload) in exchange {
                volume += payload.len() + 4;
                if volume > CONVERSATION_BYTES_MAX { break }
                if from_us {
                    let mut said = Vec::new();
                    ours.say(&payload, &mut said);
                    let mut read = Vec::new();
                    prop_assert!(theirs.decode(&mut BytesMut::from(&said[..]), &mut read).unwrap());
                    prop_assert_eq!(&read, &payload);
                } else {
                    let mut said = BytesMut::new();
                    // The reference writes nothing at all for an empty payload's header but the extra packet: the same.
                    theirs.encode(&mut &payload[..], &mut said).unwrap();
                    ours.hear(&said);
                    prop_assert_eq!(ours.next().unwrap(), Some(payload));
                    prop_assert!(ours.is_at_rest());
                }
            }
        }
    }
}

//! Datagrams in a stream: each is 2 bytes of length, little endian, and its bytes; an empty one is a length of 0.
//! Promise: what goes in comes out whole and in order; what does not fit a queue is refused whole. Pure: no socket.
//! Written out in docs/link-protocol.md.

/// Largest payload of a UDP datagram over IPv4: 65,535 less the headers (RFC 768, RFC 791).
pub(crate) const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Bytes before each datagram.
const LENGTH_BYTES: usize = 2;

/// An empty queue keeps this much memory for the next datagrams; more is given back.
const KEPT_BYTES: usize = 4096;

/// The stream says that a datagram is longer than UDP has them: the peer is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a datagram of {0} bytes is longer than {DATAGRAM_BYTES_MAX}")]
pub(crate) struct TooLong(pub(crate) usize);

/// Datagrams on their way into a stream that may be slower than they come.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    at: usize,
    bytes_max: usize,
}

impl Outbox {
    /// Holds up to `bytes_max` bytes, and one datagram whatever its size.
    pub(crate) fn new(bytes_max: usize) -> Outbox {
        Outbox { bytes: Vec::new(), at: 0, bytes_max }
    }

    /// Queues a datagram. `false`: there is no room, or it is longer than datagrams are; nothing was queued.
    pub(crate) fn push(&mut self, datagram: &[u8]) -> bool {
        let len = datagram.len();
        let fits = self.is_empty() || self.pending().len() + LENGTH_BYTES + len <= self.bytes_max;
        if len > DATAGRAM_BYTES_MAX || !fits {
            return false;
        }
        if self.at > self.bytes.len() / 2 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(&(len as u16).to_le_bytes());
        self.bytes.extend_from_slice(datagram);
        true
    }

    /// What the stream has to take.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// Whether it has taken everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// The stream took `n` bytes of [`pending`](Outbox::pending).
    pub(crate) fn took(&mut self, n: usize) {
        self.at += n;
        if self.is_empty() {
            self.at = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_BYTES);
        }
    }
}

/// The first datagram of a stream's bytes, and how many bytes it takes with its length; `None` if it is not whole yet.
///
/// # Errors
/// [`TooLong`].
pub(crate) fn first(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, TooLong> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let len = usize::from(u16::from_le_bytes(*length));
    if len > DATAGRAM_BYTES_MAX {
        return Err(TooLong(len));
    }
    Ok(rest.get(..len).map(|datagram| (datagram, LENGTH_BYTES + len)))
}

/// Datagrams of one size that one system call sends (GSO): all as long as the first, but for a last one that is shorter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Bytes of the stream that it takes.
    pub(crate) taken: usize,
    /// How many datagrams.
    pub(crate) count: usize,
}

/// The longest run at the front of `bytes`: at most `count_max` datagrams and 65,507 bytes, gathered into `into` (which is
/// left alone if it is one datagram). `None`: there is no whole datagram.
///
/// # Errors
/// [`TooLong`], if the first is.
pub(crate) fn run(bytes: &[u8], count_max: usize, size_max: usize, into: &mut Vec<u8>) -> Result<Option<Run>, TooLong> {
    let Some((head, mut taken)) = first(bytes)? else { return Ok(None) };
    let mut count = 1;
    if head.is_empty() || head.len() > size_max {
        return Ok(Some(Run { taken, count }));
    }
    into.clear();
    into.extend_from_slice(head);
    while count < count_max
        && let Ok(Some((next, more))) = first(&bytes[taken..])
        && !next.is_empty()
        && next.len() <= head.len()
        && into.len() + next.len() <= DATAGRAM_BYTES_MAX
    {
        into.extend_from_slice(next);
        taken += more;
        count += 1;
        if next.len() < head.len() {
            break;
        }
    }
    Ok(Some(Run { taken, count }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn datagrams() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let size = prop_oneof![Just(0usize), Just(7), Just(7), 1usize..40, Just(DATAGRAM_BYTES_MAX)];
        prop::collection::vec((size, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]), 0..12)
    }

    proptest! {
        /// However the stream is cut into pieces, the same datagrams come out in the same order.
        #[test]
        fn what_goes_in_comes_out(datagrams in datagrams(), cut in 1usize..5000) {
            let mut outbox = Outbox::new(usize::MAX);
            for datagram in &datagrams {
                prop_assert!(outbox.push(datagram));
            }
            let (mut inbox, mut out) = (Vec::new(), Vec::new());
            while !outbox.is_empty() {
                let n = outbox.pending().len().min(cut);
                inbox.extend_from_slice(&outbox.pending()[..n]);
                outbox.took(n);
                while let Some((datagram, taken)) = first(&inbox).unwrap() {
                    out.push(datagram.to_vec());
                    inbox.drain(..taken);
                }
            }
            prop_assert_eq!(out, datagrams);
            prop_assert!(inbox.is_empty());
        }

        /// A full queue refuses a datagram whole and keeps the others; it holds no more than it may, but for a single one.
        #[test]
        fn a_full_queue_refuses(datagrams in datagrams(), bytes_max in 0usize..200) {
            let (mut outbox, mut kept) = (Outbox::new(bytes_max), Vec::new());
            for datagram in &datagrams {
                if outbox.push(datagram) {
                    kept.push(datagram.clone());
                }
                prop_assert!(outbox.pending().len() <= bytes_max || kept.len() == 1);
            }
            let mut left = outbox.pending();
            for datagram in &kept {
                let (next, taken) = first(left).unwrap().unwrap();
                prop_assert_eq!(next, datagram.as_slice());
                left = &left[taken..];
            }
            prop_assert!(left.is_empty());
        }

        /// Runs sent as the kernel cuts them are the same datagrams one by one.
        #[test]
        fn runs_are_datagrams(datagrams in datagrams(), count_max in 1usize..6) {
            let mut outbox = Outbox::new(usize::MAX);
            datagrams.iter().for_each(|d| assert!(outbox.push(d)));
            let (mut left, mut out, mut gathered) = (outbox.pending(), Vec::new(), Vec::new());
            while let Some(found) = run(left, count_max, 1472, &mut gathered).unwrap() {
                prop_assert!(found.count <= count_max);
                let (head, _) = first(left).unwrap().unwrap();
                if found.count == 1 {
                    out.push(head.to_vec());
                } else {
                    prop_assert!(gathered.len() <= DATAGRAM_BYTES_MAX);
                    prop_assert_eq!(gathered.len().div_ceil(head.len()), found.count);
                    out.extend(gathered.chunks(head.len()).map(<[u8]>::to_vec));
                }
                left = &left[found.taken..];
            }
            prop_assert_eq!(out, datagrams);
        }

        /// No bytes of a peer panic.
        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            let _ = first(&bytes);
            let _ = run(&bytes, 64, 1472, &mut Vec::new());
        }
    }

    /// A length that UDP does not have is a broken peer.
    #[test]
    fn too_long() {
        assert_eq!(first(&65_508u16.to_le_bytes()), Err(TooLong(65_508)));
        assert_eq!(first(&65_507u16.to_le_bytes()), Ok(None));
        assert!(!Outbox::new(usize::MAX).push(&vec![0; DATAGRAM_BYTES_MAX + 1]));
    }
}

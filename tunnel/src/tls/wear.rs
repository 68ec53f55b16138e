//! How much a key has encrypted, and when that is enough.
//!
//! AES-GCM loses a little with every block: after `s` blocks in `q` messages somebody who sees them all tells them from
//! noise with a probability of (s + q + 1)² / 2^129 (draft-irtf-cfrg-aead-limits §5.1.1). RFC 8446 §5.5 draws the line
//! at 2^24.5 full records, which are 2^34.5 blocks. Ours is at 2^34, in either direction: 256 GiB, or six thousand million
//! records of 16 bytes. Counting records alone would be simpler and end a carrier of small frames after minutes.
//! ChaCha20-Poly1305 has no such limit; it gets this one, so that there is one number.
//! Pure.

use ringspan_engine::kernel::ktls::RECORD_BYTES_MAX;

/// Bytes of a block of AES.
const BLOCK_BYTES: u64 = 16;
/// Blocks a key may encrypt.
const BLOCKS_MAX: u64 = 1 << 34;
/// From here on the carrier is replaced: the last quarter is for streams that are still on it.
const BLOCKS_WORN: u64 = BLOCKS_MAX / 4 * 3;

/// rustls changes its keys by itself after 2^24 records, whatever their size, and a kernel at the other end could not
/// follow: such a carrier is replaced as early.
const RECORDS_WORN: u64 = (1 << 24) / 4 * 3;

/// The count of one direction of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wear {
    blocks: u64,
    records: u64,
    told: bool,
}

impl Wear {
    /// `bytes` went in one call. Rounded up: each record adds its content type, and one for the message itself.
    pub(crate) fn add(&mut self, bytes: usize) {
        if bytes > 0 {
            let records = bytes.div_ceil(RECORD_BYTES_MAX) as u64;
            self.blocks += bytes as u64 / BLOCK_BYTES + 3 * records;
            self.records += records;
        }
    }

    /// Whether it is time to look for a successor; once.
    pub(crate) fn is_worn(&self) -> bool {
        self.blocks >= BLOCKS_WORN && !self.told
    }

    /// The same where rustls makes the records.
    pub(crate) fn is_worn_by_records(&self) -> bool {
        self.records >= RECORDS_WORN && !self.told
    }

    /// The same, after somebody has been told.
    pub(crate) fn told(self) -> Wear {
        Wear { told: true, ..self }
    }

    /// Whether nothing more may be encrypted.
    pub(crate) fn is_over(&self) -> bool {
        self.blocks >= BLOCKS_MAX
    }

    /// As if so many full records had gone by.
    #[cfg(test)]
    pub(crate) fn after_records(records: u64) -> Wear {
        Wear { blocks: records * (RECORD_BYTES_MAX as u64 / BLOCK_BYTES + 3), records, told: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Full records end a key before RFC 8446's line and small ones later; the replacement is asked for once, and long
    /// before the end.
    #[test]
    fn keys_wear_out_by_blocks() {
        let line = 23_726_566; // 2^24.5
        let mut full = Wear::after_records(12_500_000);
        assert!(!full.is_worn() && !full.is_over());
        full = Wear::after_records(13_000_000);
        assert!(full.is_worn() && !full.is_over() && !full.told().is_worn());
        assert!(Wear::after_records(17_000_000).is_over() && 17_000_000 < line);
        let mut small = Wear::default();
        (0..line).for_each(|_| small.add(100));
        assert!(!small.is_worn() && small.is_worn_by_records(), "{small:?}");
        assert!(!Wear::after_records(12_000_000).is_worn_by_records() && !small.told().is_worn_by_records());
        assert_eq!(
            {
                small.add(0);
                small
            },
            small
        );
    }
}

//! The name of one operation in flight: who asked, which slot, and which use of that slot.
//!
//! ```text
//! 63    60 59   57  56  55          24 23         0
//! resident | op   | 0 | generation    | index      |
//! ```
//! The generation makes a stale completion recognisable: a slot that was freed and taken again has another one.
//! Bit 56 is always zero in a token; an [`Io`](crate::io::Io) may set it in its own user_data for operations that
//! no resident asked for.

/// See the module's picture.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// Residents on one worker: 4 bits; 0 is the worker itself.
    pub const RESIDENTS_MAX: u8 = 16;
    /// Kinds of operation one resident tells apart: 3 bits.
    pub const OPS_MAX: u8 = 8;
    /// Slots one resident can name: 24 bits, sixteen million.
    pub const INDEX_MAX: u32 = (1 << 24) - 1;
    /// The bit an `Io` may use for itself.
    pub const PRIVATE_BIT: u64 = 1 << 56;

    /// Panics if a part does not fit its field: the caller's slab is larger than it promised.
    pub const fn new(resident: u8, op: u8, generation: u32, index: u32) -> Token {
        assert!(resident < Self::RESIDENTS_MAX && op < Self::OPS_MAX && index <= Self::INDEX_MAX);
        Token((resident as u64) << 60 | (op as u64) << 57 | (generation as u64) << 24 | index as u64)
    }

    /// The number as it travels through the kernel.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Reads what [`raw`](Token::raw) wrote. The private bit is dropped.
    pub const fn from_raw(raw: u64) -> Token {
        Token(raw & !Self::PRIVATE_BIT)
    }

    /// Which resident of the worker asked.
    pub const fn resident(self) -> u8 {
        (self.0 >> 60) as u8
    }

    /// The resident's own kind of operation.
    pub const fn op(self) -> u8 {
        (self.0 >> 57) as u8 & (Self::OPS_MAX - 1)
    }

    /// Which use of the slot.
    pub const fn generation(self) -> u32 {
        (self.0 >> 24) as u32
    }

    /// Which slot of the resident.
    pub const fn index(self) -> u32 {
        (self.0 as u32) & Self::INDEX_MAX
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}:{}#{}", self.resident(), self.op(), self.index(), self.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every part comes back as it went in, at both ends of its range, and none touches another.
    #[test]
    fn parts_come_back() {
        for resident in [0, 1, 15] {
            for op in [0, 1, 7] {
                for generation in [0, 1, u32::MAX] {
                    for index in [0, 1, Token::INDEX_MAX] {
                        let t = Token::from_raw(Token::new(resident, op, generation, index).raw() | Token::PRIVATE_BIT);
                        assert_eq!(
                            (t.resident(), t.op(), t.generation(), t.index()),
                            (resident, op, generation, index)
                        );
                        assert_eq!(t.raw() & Token::PRIVATE_BIT, 0);
                    }
                }
            }
        }
    }
}

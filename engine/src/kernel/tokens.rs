//! From a token to the place its operation lives in: an index table, because cancelling must not hash.
//! Promise: finding and noting are two array reads; entries of ended operations are left to be overwritten, so whoever
//! finds one asks the place whether the token is still there.

use crate::token::Token;

/// Entries per page: 16 KiB of memory for each stretch of indices that a resident really uses.
const PAGE: usize = 4096;
const PAGES: usize = (Token::INDEX_MAX as usize + 1) / PAGE;
const NOTHING: u32 = u32::MAX;

/// The pages of one kind of operation of one resident; absent until used.
type Pages = Vec<Option<Box<[u32; PAGE]>>>;

#[derive(Default)]
pub(super) struct TokenTable {
    /// By resident and operation.
    kinds: Vec<Pages>,
}

impl TokenTable {
    /// Remembers that the operation of `token` lives at `place` (not `u32::MAX`).
    pub(super) fn note(&mut self, token: Token, place: u32) {
        let (kind, page, entry) = split(token);
        if self.kinds.len() <= kind {
            self.kinds.resize_with(kind + 1, Vec::new);
        }
        let pages = &mut self.kinds[kind];
        if pages.len() <= page {
            debug_assert!(page < PAGES);
            pages.resize_with(page + 1, || None);
        }
        pages[page].get_or_insert_with(|| Box::new([NOTHING; PAGE]))[entry] = place;
    }

    /// The place last noted for this token's kind and index, whatever the generation.
    pub(super) fn find(&self, token: Token) -> Option<u32> {
        let (kind, page, entry) = split(token);
        let place = self.kinds.get(kind)?.get(page)?.as_ref()?[entry];
        (place != NOTHING).then_some(place)
    }
}

fn split(token: Token) -> (usize, usize, usize) {
    let kind = usize::from(token.resident()) * usize::from(Token::OPS_MAX) + usize::from(token.op());
    let index = token.index() as usize;
    (kind, index / PAGE, index % PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last note wins, kinds and indices do not mix, and what was never noted is not found.
    #[test]
    fn the_last_note_is_found() {
        let mut table = TokenTable::default();
        let far = Token::new(15, 7, 3, Token::INDEX_MAX);
        assert_eq!(table.find(far), None);
        table.note(far, 5);
        table.note(Token::new(15, 6, 3, Token::INDEX_MAX), 6);
        table.note(Token::new(1, 7, 3, 0), 7);
        assert_eq!(table.find(far), Some(5));
        table.note(Token::new(15, 7, 4, Token::INDEX_MAX), 8);
        assert_eq!(table.find(far), Some(8));
        assert_eq!(table.find(Token::new(1, 7, 0, 1)), None);
    }
}

//! Numbered slots whose numbers stay put, each use of one told apart by a generation.
//! Promise: a key names one use of one slot; once that use has ended the key finds nothing, for ever (until its slot
//! has been used 2^32 times more). Growing never moves what is there. Pure: no kernel, no clock.
//!
//! A slab is filled in one of two ways, never both: [`Slab::insert`] picks the slot (probes in flight), or somebody
//! else names it and [`Slab::insert_at`] obeys (targets, whose names are given out on another thread).

/// Slots per allocation: growing by this many keeps a worker from copying megabytes at once.
const CHUNK: usize = 1024;

/// One use of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Which slot.
    pub index: u32,
    /// Which use of it.
    pub generation: u32,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// See the module.
pub struct Slab<T> {
    chunks: Vec<Box<[Entry<T>]>>,
    /// Slots that [`insert`](Slab::insert) may use again, the warmest last.
    free: Vec<u32>,
    /// Slots below this have been handed out by `insert` at least once.
    fresh: u32,
    len: u32,
    len_max: u32,
}

impl<T> Slab<T> {
    /// An empty slab that will hold `len_max` values at most; its indices are below that.
    pub fn new(len_max: u32) -> Slab<T> {
        Slab { chunks: Vec::new(), free: Vec::new(), fresh: 0, len: 0, len_max }
    }

    /// Bytes on the heap, what values own there themselves left out. They follow the highest index ever used, a thousand
    /// at a time, and are never given back.
    pub fn bytes(&self) -> usize {
        let entries = self.chunks.len() * CHUNK * size_of::<Entry<T>>();
        entries + self.chunks.capacity() * size_of::<Box<[Entry<T>]>>() + self.free.capacity() * size_of::<u32>()
    }

    /// How many values there are.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether [`insert`](Slab::insert) would refuse.
    pub fn is_full(&self) -> bool {
        self.len == self.len_max
    }

    /// Puts `value` into a free slot, the one freed last if there is one; `None` when the slab is full.
    pub fn insert(&mut self, value: T) -> Option<Key> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.fresh < self.len_max => {
                self.fresh += 1;
                self.fresh - 1
            }
            None => return None,
        };
        let entry = self.entry_grown(index);
        entry.value = Some(value);
        let key = Key { index, generation: entry.generation };
        self.len += 1;
        Some(key)
    }

    /// Puts `value` where `key` says. Returns whether it did: not if the slot is in use or out of range.
    pub fn insert_at(&mut self, key: Key, value: T) -> bool {
        if key.index >= self.len_max {
            return false;
        }
        let entry = self.entry_grown(key.index);
        if entry.value.is_some() {
            return false;
        }
        *entry = Entry { generation: key.generation, value: Some(value) };
        self.len += 1;
        true
    }

    /// The value of this key, if its use has not ended.
    pub fn get(&self, key: Key) -> Option<&T> {
        let entry = self.chunks.get(key.index as usize / CHUNK)?.get(key.index as usize % CHUNK)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    /// The value of this key, if its use has not ended.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entry(key.index)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    /// The key and value of whoever uses this slot now.
    pub fn at_mut(&mut self, index: u32) -> Option<(Key, &mut T)> {
        let entry = self.entry(index)?;
        let key = Key { index, generation: entry.generation };
        entry.value.as_mut().map(|value| (key, value))
    }

    /// Ends this use of the slot. The next use will have another generation.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let value = self.vacate(key)?;
        self.free.push(key.index);
        Some(value)
    }

    /// Ends this use of a slot filled by [`insert_at`](Slab::insert_at), and says which key comes next: whoever gives
    /// out the names may give that one.
    pub fn remove_at(&mut self, key: Key) -> Option<(T, Key)> {
        let value = self.vacate(key)?;
        Some((value, Key { index: key.index, generation: key.generation.wrapping_add(1) }))
    }

    /// The keys of all values.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.chunks.iter().flatten().enumerate().filter(|(_, entry)| entry.value.is_some()).map(|(index, entry)| Key {
            index: u32::try_from(index).expect("indices are below len_max, a u32"),
            generation: entry.generation,
        })
    }

    fn vacate(&mut self, key: Key) -> Option<T> {
        let entry = self.entry(key.index)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.len -= 1;
        Some(value)
    }

    fn entry(&mut self, index: u32) -> Option<&mut Entry<T>> {
        self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
    }

    fn entry_grown(&mut self, index: u32) -> &mut Entry<T> {
        let (chunk, offset) = (index as usize / CHUNK, index as usize % CHUNK);
        while self.chunks.len() <= chunk {
            self.chunks.push((0..CHUNK).map(|_| Entry { generation: 0, value: None }).collect());
        }
        &mut self.chunks[chunk][offset]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// A key outlives its use only as a key that finds nothing, and its slot comes back with another generation.
    #[test]
    fn a_key_ends_with_its_use() {
        let mut slab = Slab::new(1);
        let first = slab.insert('a').expect("empty");
        assert_eq!(slab.insert('b'), None, "a full slab refuses");
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('c').expect("freed");
        assert_eq!(second.index, first.index);
        assert_ne!(second.generation, first.generation);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&'c'));
    }

    /// A slot that somebody else names is used once at a time and says which name comes next.
    #[test]
    fn a_named_slot_is_used_once_at_a_time() {
        let mut slab = Slab::new(5000);
        let key = Key { index: 4999, generation: 7 };
        assert!(slab.insert_at(key, 'a'));
        assert!(!slab.insert_at(Key { generation: 8, ..key }, 'b'), "in use");
        assert!(!slab.insert_at(Key { index: 5000, generation: 0 }, 'b'), "out of range");
        assert_eq!(slab.remove_at(key), Some(('a', Key { index: 4999, generation: 8 })));
        assert_eq!((slab.get(key), slab.len()), (None, 0));
    }

    proptest! {
        /// Any mix of insertions and removals agrees with a map, and no ended key ever finds anything.
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((any::<bool>(), any::<u16>()), 1..400)) {
            let mut slab = Slab::new(40);
            let (mut live, mut ended): (HashMap<Key, u16>, Vec<Key>) = Default::default();
            for (insert, number) in steps {
                if insert {
                    let key = slab.insert(number);
                    prop_assert_eq!(key.is_some(), live.len() < 40);
                    if let Some(key) = key {
                        prop_assert_eq!(live.insert(key, number), None);
                    }
                } else if let Some(&key) = live.keys().nth(number as usize % live.len().max(1)) {
                    prop_assert_eq!(slab.remove(key), live.remove(&key));
                    ended.push(key);
                }
                prop_assert_eq!(slab.len() as usize, live.len());
                prop_assert!(live.iter().all(|(key, value)| slab.get(*key) == Some(value)));
                prop_assert!(ended.iter().all(|key| slab.get(*key).is_none()));
                prop_assert_eq!(slab.keys().count(), live.len());
            }
        }
    }
}

//! A map of bounded size, which forgets entries: attackers choose the keys.

use std::{collections::HashMap, hash::Hash, mem};

/// A map of at most `2 * generation` entries. Entries that were not used while `generation` others were are forgotten; each
/// operation takes constant time, however many keys attackers make up.
pub struct BoundedMap<K, V> {
    generation: usize,
    newer: HashMap<K, V>,
    older: HashMap<K, V>,
}

impl<K: Copy + Eq + Hash, V> BoundedMap<K, V> {
    /// Makes an empty map.
    pub fn new(generation: usize) -> Self {
        Self { generation: generation.max(1), newer: HashMap::new(), older: HashMap::new() }
    }

    /// Returns the value of a key, made by `missing` if it is not known.
    pub fn entry(&mut self, key: K, missing: impl FnOnce() -> V) -> &mut V {
        if !self.newer.contains_key(&key) {
            if self.newer.len() >= self.generation {
                self.older = mem::take(&mut self.newer);
            }
            if let Some(known) = self.older.remove(&key) {
                self.newer.insert(key, known);
            }
        }
        self.newer.entry(key).or_insert_with(missing)
    }

    /// Returns the number of entries.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.newer.len() + self.older.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_entries_is_bounded_and_those_in_use_stay() {
        let mut map = BoundedMap::new(10);
        for key in 0..1_000 {
            *map.entry(key, || 0) += 1;
            *map.entry(-1, || 0) += 1;
            assert!(map.len() <= 20, "{}", map.len());
        }
        assert_eq!(*map.entry(-1, || 0), 1_000);
        assert_eq!(*map.entry(0, || 0), 0);
    }
}

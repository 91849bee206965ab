//! What is known of files, by identity: kept so that each is read once, and bounded, because a host that builds
//! software maps new files for ever.

use std::{collections::HashMap, sync::Arc};

use super::image::ImageId;

/// Files that are remembered. Fewer are mapped at a time on any real host.
pub(super) const MOST: usize = 8192;

/// Facts by file; `None` for a file that has none.
#[derive(Debug)]
pub(super) struct Cache<V> {
    known: HashMap<ImageId, Option<Arc<V>>>,
    most: usize,
}

impl<V> Cache<V> {
    /// Remembers `most` files, and beyond them only those that are in use.
    pub(super) fn new(most: usize) -> Self {
        Self { known: HashMap::new(), most }
    }

    /// What is known of a file; `None` if it has not been read.
    pub(super) fn get(&self, id: &ImageId) -> Option<Option<Arc<V>>> {
        self.known.get(id).cloned()
    }

    /// Remembers what a file says. When there are too many, those that `matters` finds nothing in go first, then
    /// those that nobody else holds; a file that went is read again when it comes again.
    pub(super) fn insert(&mut self, id: ImageId, facts: Option<Arc<V>>, matters: impl Fn(&V) -> bool) {
        if self.known.len() >= self.most {
            self.known.retain(|_, facts| facts.as_ref().is_some_and(|facts| matters(facts)));
        }
        if self.known.len() >= self.most {
            self.known.retain(|_, facts| facts.as_ref().is_some_and(|facts| Arc::strong_count(facts) > 1));
        }
        self.known.insert(id, facts);
    }

    /// Keeps the files that somebody holds, and of the others those without facts and those that `keep` accepts.
    pub(super) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        let held = |facts: &Arc<V>| Arc::strong_count(facts) > 1 || keep(facts);
        self.known.retain(|_, facts| facts.as_ref().is_none_or(held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(inode: u64) -> ImageId {
        ImageId { device: 1, inode, size: 1, modified_ns: 1 }
    }

    /// A cache of 4 numbers, of which 0 does not matter.
    struct Numbers(Cache<u32>);

    impl Numbers {
        fn insert(&mut self, inode: u64, number: Option<u32>) -> Option<Arc<u32>> {
            let number = number.map(Arc::new);
            self.0.insert(id(inode), number.clone(), |number| *number != 0);
            number
        }

        fn inodes(&self) -> Vec<u64> {
            let mut inodes: Vec<_> = self.0.known.keys().map(|id| id.inode).collect();
            inodes.sort_unstable();
            inodes
        }
    }

    #[test]
    fn files_without_facts_go_first() {
        let mut numbers = Numbers(Cache::new(4));
        for (inode, number) in [(1, Some(7)), (2, None), (3, Some(0)), (4, Some(8))] {
            numbers.insert(inode, number);
        }
        assert_eq!(numbers.inodes(), [1, 2, 3, 4]);
        assert_eq!(numbers.0.get(&id(2)), Some(None), "read, and nothing found");
        assert_eq!(numbers.0.get(&id(5)), None, "never read");
        numbers.insert(5, None);
        assert_eq!(numbers.inodes(), [1, 4, 5]);
    }

    #[test]
    fn files_in_use_stay_and_the_rest_is_bounded() {
        let mut numbers = Numbers(Cache::new(4));
        let held: Vec<_> = (1..=2).map(|inode| numbers.insert(inode, Some(7))).collect();
        for inode in 3..=100 {
            numbers.insert(inode, Some(8));
            assert!(numbers.inodes().len() <= 4, "{:?}", numbers.inodes());
        }
        assert_eq!(numbers.inodes()[..2], [1, 2]);
        drop(held);
        let all_held: Vec<_> = (200..=210).map(|inode| numbers.insert(inode, Some(9))).collect();
        assert_eq!(numbers.inodes().len(), all_held.len(), "what targets hold costs nothing more");
    }
}

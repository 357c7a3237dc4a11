//! A dense map from small ids to values: one `Vec`, no hashing, iteration in id order.
//!
//! Ids are dense and used again (see [`super::ids`]), so the map is as long as the most ids ever alive at once.

/// Values by the index of a dense id.
#[derive(Clone, Debug)]
pub struct Slots<T> {
    items: Vec<Option<T>>,
    len: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slots<T> {
    /// An empty map.
    pub const fn new() -> Self {
        Self {
            items: Vec::new(),
            len: 0,
        }
    }

    /// The value at `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.items.get(index)?.as_ref()
    }

    /// The value at `index`, to be changed in place.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.items.get_mut(index)?.as_mut()
    }

    /// Puts `value` at `index` and returns what was there. Allocates when `index` is higher than any before.
    pub fn insert(&mut self, index: usize, value: T) -> Option<T> {
        if self.items.len() <= index {
            self.items.resize_with(index + 1, || None);
        }
        let old = self.items[index].replace(value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes the value at `index` out.
    pub fn remove(&mut self, index: usize) -> Option<T> {
        let old = self.items.get_mut(index)?.take();
        self.len -= usize::from(old.is_some());
        old
    }

    /// How many values there are. O(1).
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every value with its index, in index order. O(highest index ever used).
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        let items = self.items.iter().enumerate();
        items.filter_map(|(index, item)| Some((index, item.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_counts_values_not_slots() {
        let mut slots = Slots::new();
        assert_eq!(slots.insert(5, 'a'), None);
        assert_eq!(slots.insert(5, 'b'), Some('a'));
        assert_eq!(slots.insert(2, 'c'), None);
        assert_eq!(slots.len(), 2);
        assert_eq!(slots.remove(9), None);
        assert_eq!(slots.remove(5), Some('b'));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(2, &'c')]);
    }
}

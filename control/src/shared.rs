//! Values that many share, known by small numbers.

use std::collections::BTreeMap;

/// Values, each with how often it is used. The numbers of those that are used no more are given again.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    slots: Vec<Slot<T>>,
    numbers: BTreeMap<T, usize>,
    free: Vec<usize>,
    /// Numbers that were used no more at some time since [`Shared::free_unused`].
    unused: Vec<usize>,
}

#[derive(Debug)]
struct Slot<T> {
    /// `None`: the number is free.
    value: Option<T>,
    uses: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared { slots: Vec::new(), numbers: BTreeMap::new(), free: Vec::new(), unused: Vec::new() }
    }
}

impl<T: Clone + Ord> Shared<T> {
    /// One use more of a value: its number, and whether that is new.
    pub(crate) fn take(&mut self, value: &T) -> (usize, bool) {
        if let Some(&index) = self.numbers.get(value) {
            self.slots[index].uses += 1;
            return (index, false);
        }
        let slot = Slot { value: Some(value.clone()), uses: 1 };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.numbers.insert(value.clone(), index);
        (index, true)
    }

    /// One use less. A number that is not used any more is free only with [`Shared::free_unused`], until when its
    /// value may be taken again.
    pub(crate) fn release(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.uses -= 1;
            if slot.uses == 0 {
                self.unused.push(index);
            }
        }
    }

    /// Frees the numbers of values that are not used, and yields both.
    pub(crate) fn free_unused(&mut self) -> Vec<(usize, T)> {
        let mut freed = Vec::new();
        for index in core::mem::take(&mut self.unused) {
            let slot = &mut self.slots[index];
            let Some(value) = slot.value.take_if(|_| slot.uses == 0) else { continue };
            if self.numbers.get(&value) == Some(&index) {
                self.numbers.remove(&value);
            }
            self.free.push(index);
            freed.push((index, value));
        }
        freed
    }

    /// How many values have a number.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The number of a value, if it has one.
    pub(crate) fn number(&self, value: &T) -> Option<usize> {
        self.numbers.get(value).copied()
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.slots.get(index)?.value.as_ref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.value.as_ref()?)))
    }

    /// Changes values in place, for all who use them; `change` says whether it did. Two may become equal.
    pub(crate) fn change(&mut self, mut change: impl FnMut(usize, &mut T) -> bool) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(value) = &mut slot.value else { continue };
            let before = value.clone();
            if !change(index, value) {
                continue;
            }
            if self.numbers.get(&before) == Some(&index) {
                self.numbers.remove(&before);
            }
            self.numbers.entry(value.clone()).or_insert(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_again_when_nobody_uses_them() {
        let mut shared = Shared::default();
        assert_eq!(
            [shared.take(&"a"), shared.take(&"b"), shared.take(&"a")],
            [(0, true), (1, true), (0, false)]
        );
        shared.release(0);
        assert_eq!(shared.free_unused(), []);
        shared.release(0);
        // Not yet free.
        assert_eq!((shared.take(&"c"), shared.take(&"a")), ((2, true), (0, false)));
        shared.release(0);
        assert_eq!((shared.free_unused(), shared.get(0), shared.len()), (vec![(0, "a")], None, 2));
        assert_eq!((shared.take(&"d"), shared.get(0), shared.number(&"a")), ((0, true), Some(&"d"), None));
    }

    #[test]
    fn values_that_became_equal_are_freed_one_by_one() {
        let mut shared = Shared::default();
        for value in ["a", "b", "c"] {
            shared.take(&value);
        }
        shared.change(|index, value| {
            let concerned = index != 2;
            if concerned {
                *value = "d";
            }
            concerned
        });
        let numbers = ["a", "b", "c", "d"].map(|value| shared.number(&value));
        assert_eq!(numbers, [None, None, Some(2), Some(0)]);
        shared.release(0);
        assert_eq!((shared.free_unused(), shared.number(&"d"), shared.len()), (vec![(0, "d")], None, 2));
        shared.release(1);
        assert_eq!((shared.take(&"d"), shared.free_unused()), ((0, true), vec![(1, "d")]));
        assert_eq!(shared.number(&"d"), Some(0));
    }
}

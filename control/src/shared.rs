//! Values that many share, known by small numbers.
//!
//! What is done costs the logarithm of how many values there are: peers decide about that.

use std::collections::{BTreeMap, BTreeSet};

/// Values, each with how often it is used, and their numbers of type `N`. The numbers of those that are used no more
/// are given again.
///
/// Invariant: the numbers of `slots` and `free` are all from 0 up to how many they are together.
#[derive(Debug)]
pub(crate) struct Shared<T, N> {
    slots: BTreeMap<N, Slot<T>>,
    /// The number of a value; of one that several have, one of them.
    numbers: BTreeMap<T, N>,
    free: Vec<N>,
    /// Those in `slots` that nobody uses.
    unused: BTreeSet<N>,
}

#[derive(Debug)]
struct Slot<T> {
    value: T,
    uses: usize,
}

impl<T, N> Default for Shared<T, N> {
    fn default() -> Self {
        Shared { slots: BTreeMap::new(), numbers: BTreeMap::new(), free: Vec::new(), unused: BTreeSet::new() }
    }
}

impl<T: Clone + Ord, N: Copy + Ord + TryFrom<usize>> Shared<T, N> {
    /// One use more of a value: its number, and whether that is new. `None`: it would be, but there are `most` values
    /// already, or as many as there are numbers.
    pub(crate) fn take(&mut self, value: &T, most: usize) -> Option<(N, bool)> {
        if let Some((number, slot)) =
            self.numbers.get(value).and_then(|number| Some((*number, self.slots.get_mut(number)?)))
        {
            slot.uses += 1;
            self.unused.remove(&number);
            return Some((number, false));
        }
        if self.slots.len() >= most {
            return None;
        }
        let number = self.free.pop().or_else(|| N::try_from(self.slots.len()).ok())?;
        self.slots.insert(number, Slot { value: value.clone(), uses: 1 });
        self.numbers.insert(value.clone(), number);
        Some((number, true))
    }

    /// One use less. A number that is not used any more is free only with [`Shared::free_unused`], until when its
    /// value may be taken again.
    pub(crate) fn release(&mut self, number: N) {
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.uses -= 1;
            if slot.uses == 0 {
                self.unused.insert(number);
            }
        }
    }

    /// Frees the numbers of values that are not used, and yields both.
    pub(crate) fn free_unused(&mut self) -> Vec<(N, T)> {
        let mut freed = Vec::new();
        for number in std::mem::take(&mut self.unused) {
            if let Some(Slot { value, .. }) = self.slots.remove(&number) {
                forget(&mut self.numbers, &value, number);
                self.free.push(number);
                freed.push((number, value));
            }
        }
        freed
    }

    pub(crate) fn get(&self, number: N) -> Option<&T> {
        Some(&self.slots.get(&number)?.value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (N, &T)> {
        self.slots.iter().map(|(number, slot)| (*number, &slot.value))
    }

    /// Replaces values in place, for all who use them, where there is a replacement; two may become equal.
    pub(crate) fn replace(&mut self, mut replacement: impl FnMut(N, &T) -> Option<T>) {
        for (number, slot) in &mut self.slots {
            if let Some(value) = replacement(*number, &slot.value) {
                forget(&mut self.numbers, &slot.value, *number);
                self.numbers.entry(value.clone()).or_insert(*number);
                slot.value = value;
            }
        }
    }
}

/// Another number's value may be equal.
fn forget<T: Ord, N: PartialEq>(numbers: &mut BTreeMap<T, N>, value: &T, number: N) {
    if numbers.get(value) == Some(&number) {
        numbers.remove(value);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, cmp::Ordering, collections::BTreeSet};

    use super::*;

    const ANY: usize = usize::MAX;

    #[test]
    fn numbers_are_given_again_when_nobody_uses_them() {
        let mut shared = Shared::<_, u16>::default();
        let mut take = |value: &'static str| shared.take(&value, ANY).unwrap();
        assert_eq!([take("a"), take("b"), take("a")], [(0, true), (1, true), (0, false)]);
        shared.release(0);
        assert_eq!(shared.free_unused(), []);
        shared.release(0);
        // Not yet free.
        assert_eq!((shared.take(&"c", ANY), shared.take(&"a", ANY)), (Some((2, true)), Some((0, false))));
        assert_eq!(shared.free_unused(), []);
        shared.release(0);
        assert_eq!((shared.free_unused(), shared.get(0)), (vec![(0, "a")], None));
        assert_eq!((shared.take(&"d", ANY), shared.get(0)), (Some((0, true)), Some(&"d")));
    }

    #[test]
    fn values_that_are_replaced_are_found_by_what_they_are_now() {
        let mut shared = Shared::<_, u16>::default();
        for value in ["a", "b", "c"] {
            shared.take(&value, ANY);
        }
        shared.replace(|number, value| {
            assert_eq!(["a", "b", "c"][usize::from(number)], *value);
            (number < 2).then_some("e")
        });
        assert_eq!(shared.iter().collect::<Vec<_>>(), [(0, &"e"), (1, &"e"), (2, &"c")]);
        assert_eq!(shared.take(&"a", ANY), Some((3, true)));
        // Equal ones keep their uses apart, and the first to go takes nothing from the other.
        assert_eq!(shared.take(&"e", ANY), Some((0, false)));
        shared.release(1);
        assert_eq!((shared.free_unused(), shared.take(&"e", ANY)), (vec![(1, "e")], Some((0, false))));
        (0..3).for_each(|_| shared.release(0));
        assert_eq!((shared.free_unused(), shared.take(&"e", ANY)), (vec![(0, "e")], Some((0, true))));
    }

    #[test]
    fn there_are_no_more_values_than_asked_for_and_no_more_than_numbers() {
        let mut shared = Shared::<_, u8>::default();
        assert_eq!([0, 1, 2].map(|value| shared.take(&value, 2).is_some()), [true, true, false]);
        assert_eq!(shared.take(&1, 2), Some((1, false)));
        let taken = (0..300).filter(|value| shared.take(value, ANY).is_some()).count();
        assert_eq!((taken, shared.iter().count()), (256, 256));
        shared.release(7);
        assert_eq!((shared.free_unused(), shared.take(&1000, ANY)), (vec![(7, 7)], Some((7, true))));
    }

    /// Counts how often it is compared.
    #[derive(Clone, Debug)]
    struct Counted<'c>(u32, &'c Cell<u64>);

    impl Ord for Counted<'_> {
        fn cmp(&self, other: &Self) -> Ordering {
            self.1.set(self.1.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted<'_> {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }

    impl Eq for Counted<'_> {}

    #[test]
    fn many_values_are_not_searched_one_by_one() {
        const MANY: u32 = 20_000;
        let (compared, mut shared) = (Cell::new(0), Shared::<_, u32>::default());
        for round in 0..2 {
            let numbers: BTreeSet<u32> = (0..MANY)
                .map(|value| shared.take(&Counted(value + round, &compared), ANY).unwrap().0)
                .collect();
            assert_eq!(numbers.len(), MANY as usize);
            numbers.into_iter().for_each(|number| shared.release(number));
            assert_eq!(shared.free_unused().len(), MANY as usize);
        }
        assert!(compared.get() < 500 * u64::from(MANY), "{}", compared.get());
    }
}

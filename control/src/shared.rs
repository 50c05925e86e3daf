//! Values that many share, known by small numbers.

/// Values, each with how often it is used. The numbers of those that are used no more are given again.
#[derive(Debug)]
pub(crate) struct Shared<T>(Vec<Slot<T>>);

#[derive(Debug)]
struct Slot<T> {
    /// `None`: the number is free.
    value: Option<T>,
    uses: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared(Vec::new())
    }
}

impl<T: Clone + PartialEq> Shared<T> {
    /// One use more of a value: its number, and whether that is new. There are few of them.
    pub(crate) fn take(&mut self, value: &T) -> (usize, bool) {
        let slots = &mut self.0;
        if let Some(index) = slots.iter().position(|slot| slot.value.as_ref() == Some(value)) {
            slots[index].uses += 1;
            return (index, false);
        }
        let slot = Slot { value: Some(value.clone()), uses: 1 };
        match slots.iter().position(|slot| slot.value.is_none()) {
            Some(index) => {
                slots[index] = slot;
                (index, true)
            }
            None => {
                slots.push(slot);
                (slots.len() - 1, true)
            }
        }
    }

    /// One use less. A number that is not used any more is free only with [`Shared::free_unused`], until when its
    /// value may be taken again.
    pub(crate) fn release(&mut self, index: usize) {
        if let Some(slot) = self.0.get_mut(index) {
            slot.uses -= 1;
        }
    }

    /// Frees the numbers of values that are not used, and yields both.
    pub(crate) fn free_unused(&mut self) -> Vec<(usize, T)> {
        let unused = self.0.iter_mut().enumerate().filter(|(_, slot)| slot.uses == 0);
        unused.filter_map(|(index, slot)| Some((index, slot.value.take()?))).collect()
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.0.get(index)?.value.as_ref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.0.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.value.as_ref()?)))
    }

    /// Values may be changed in place, for all who use them; two may become equal.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.0.iter_mut().enumerate().filter_map(|(index, slot)| Some((index, slot.value.as_mut()?)))
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
        assert_eq!((shared.free_unused(), shared.get(0)), (vec![(0, "a")], None));
        assert_eq!((shared.take(&"d"), shared.get(0)), ((0, true), Some(&"d")));
        for (_, value) in shared.iter_mut() {
            *value = "e";
        }
        assert_eq!((shared.take(&"e"), shared.iter().count()), ((0, false), 3));
    }
}

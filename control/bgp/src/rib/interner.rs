//! Equal attributes are held once.

use std::{collections::BTreeSet, sync::Arc};

use crate::attributes::Attributes;

/// So many more than at the last look, and those that nobody uses are dropped.
const SLACK: usize = 1024;

#[derive(Default, Debug)]
pub(super) struct Interner {
    all: BTreeSet<Arc<Attributes>>,
    used: usize,
    /// Most messages carry what the last one carried.
    last: Option<Arc<Attributes>>,
}

impl Interner {
    pub(super) fn intern(&mut self, attributes: &Arc<Attributes>) -> Arc<Attributes> {
        if let Some(last) = self.last.as_ref().filter(|last| *last == attributes) {
            return last.clone();
        }
        let known = match self.all.get(attributes) {
            Some(known) => known.clone(),
            None => {
                self.all.insert(attributes.clone());
                attributes.clone()
            }
        };
        self.last = Some(known.clone());
        if self.all.len() > 2 * self.used + SLACK {
            self.all.retain(|attributes| Arc::strong_count(attributes) > 1);
            self.used = self.all.len();
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_attributes_are_one_and_unused_ones_are_dropped() {
        let mut interner = Interner::default();
        let make = |med| {
            let plain = Attributes::originated([10, 0, 0, 1].into());
            Arc::new(Attributes { med: Some(med), ..plain })
        };
        let kept: Vec<_> = (0..100).map(|med| interner.intern(&make(med))).collect();
        for (med, first) in (0..).zip(&kept) {
            assert!(Arc::ptr_eq(first, &interner.intern(&make(med))));
        }
        for med in 100..100_000 {
            interner.intern(&make(med));
            assert!(interner.all.len() <= 2 * SLACK + 400, "{}", interner.all.len());
        }
        assert!(Arc::ptr_eq(&kept[7], &interner.intern(&make(7))));
    }
}

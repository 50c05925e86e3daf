//! Secrets of types that do not wipe themselves.

use std::{mem::MaybeUninit, ops::Deref};

use zeroize::Zeroize;

/// A value with memory of its own, which is overwritten with zeros when the value is dropped.
pub struct Wiped<T>(Box<MaybeUninit<T>>);

impl<T> Wiped<T> {
    /// Moves `value` there; what the move leaves behind on the stack is not wiped.
    pub fn new(value: T) -> Self {
        Wiped(Box::new(MaybeUninit::new(value)))
    }

    /// Drops the value and overwrites all of its memory.
    ///
    /// # Safety
    /// Once only, and nothing may look at the value after it.
    unsafe fn end(&mut self) {
        // SAFETY: `new` has written the value, and the caller ends it once.
        unsafe { self.0.assume_init_drop() };
        // As a slice it is overwritten byte by byte, padding too.
        core::slice::from_mut(&mut *self.0).zeroize();
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: `new` has written the value, which lives until `drop`.
        unsafe { self.0.assume_init_ref() }
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: nobody else ends it, and it is gone after this.
        unsafe { self.end() };
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, mem::ManuallyDrop};

    use super::*;

    struct Key<'a> {
        /// With padding behind it.
        kind: u8,
        bytes: [u8; 48],
        dropped: &'a Cell<u32>,
    }

    impl Drop for Key<'_> {
        fn drop(&mut self) {
            assert_eq!(self.bytes, [0xA5; 48]);
            self.dropped.set(self.dropped.get() + 1);
        }
    }

    #[test]
    fn a_value_is_dropped_once_and_its_memory_is_zero() {
        let dropped = Cell::new(0);
        let mut wiped = ManuallyDrop::new(Wiped::new(Key { kind: 7, bytes: [0xA5; 48], dropped: &dropped }));
        assert_eq!((wiped.kind, wiped.bytes), (7, [0xA5; 48]));
        // SAFETY: it is never dropped.
        unsafe { wiped.end() };
        assert_eq!(dropped.get(), 1);
        // SAFETY: any bytes are bytes, and all of them have just been written.
        let left =
            unsafe { core::slice::from_raw_parts(wiped.0.as_ptr().cast::<u8>(), size_of::<Key<'_>>()) };
        assert_eq!(left, [0; size_of::<Key<'_>>()]);
        // SAFETY: the value has ended, its memory has not; what is left of it has nothing to drop.
        drop(unsafe { Box::from_raw(&raw mut *wiped.0) });
    }

    #[test]
    fn dropping_it_drops_the_value_once() {
        let dropped = Cell::new(0);
        drop(Wiped::new(Key { kind: 7, bytes: [0xA5; 48], dropped: &dropped }));
        assert_eq!(dropped.get(), 1);
    }
}

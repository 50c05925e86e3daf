//! Memory of the process that nobody holds any more.

/// Gives back to the system what lies free between what is in use. It looks at the whole heap: some tens of
/// milliseconds for hundreds of MiB. Without glibc it does nothing.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's locks like malloc itself and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_free_between_what_is_in_use_is_given_back() {
        // Small pieces, each fifth of which stays: no end of the heap to cut off.
        let mut all: Vec<Option<Vec<u8>>> = (0..50_000).map(|_| Some(vec![1; 2000])).collect();
        all.iter_mut().enumerate().filter(|(at, _)| at % 50 != 0).for_each(|(_, piece)| *piece = None);
        let before = resident();
        super::trim();
        assert!(resident() + 5_000 < before, "{} pages of {before}", resident());
        drop(all);
    }
}

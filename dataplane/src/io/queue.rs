//! How much waits in a socket.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Bytes, with the kernel's overhead, that were sent into a Unix socket and not read yet.
///
/// # Errors
/// The descriptor is no socket.
pub fn unread(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one int, which lives across it; the descriptor is open.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(bytes.max(0) as usize) } else { Err(io::Error::last_os_error()) }
}

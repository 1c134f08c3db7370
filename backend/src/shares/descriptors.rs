//! File descriptors: connections leave some of them to files, the database and probes.

use std::{io, mem::MaybeUninit};

/// Descriptors that connections leave free: the database's, files of pictures, outgoing requests, the log, and connections
/// for probes.
pub const RESERVED_DESCRIPTORS: u64 = 256;

/// Raises the limit of open files to the maximum that the system allows this process, and returns it.
///
/// # Errors
/// The system refuses to report or to change it.
pub fn raise_soft_limit() -> io::Result<u64> {
    let mut limits = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: `getrlimit` writes the struct behind the pointer, and nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, limits.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so that the struct is written.
    let mut limits = unsafe { limits.assume_init() };
    if limits.rlim_cur < limits.rlim_max {
        limits.rlim_cur = limits.rlim_max;
        // SAFETY: `setrlimit` reads the struct behind the pointer, and nothing else.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limits.rlim_cur)
}

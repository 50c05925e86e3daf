//! What network cards do for the kernel, done here between TUN and tunnel: cutting super-packets
//! into segments, joining segments into super-packets, completing checksums.

pub mod checksum;
pub mod coalesce;
pub mod segment;
pub mod vnet;

/// Bytes of the largest TCP or UDP header with its IP header, as far as offloads take part.
pub const MAX_HEADERS: usize = 128;

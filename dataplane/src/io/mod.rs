//! Devices and sockets: the only place in Braid with `unsafe`.
//!
//! Everything here is a thin, total wrapper: bytes and descriptors go in, results come out, and no
//! protocol is known beyond the control messages of the kernel (`UDP_SEGMENT`, `UDP_GRO`, TOS).
//! Opening needs privileges and is done by the launcher; the core gets open descriptors.

#![expect(unsafe_code, reason = "the kernel's interface")]

pub mod batch;
pub mod heap;
pub mod icmp;
pub mod netlink;
pub mod path;
pub mod priority;
pub mod queue;
pub mod raw;
pub mod simd;
mod sockopt;
pub mod tcp;
pub mod ttl;
pub mod tun;
pub mod udp;
pub mod wiped;

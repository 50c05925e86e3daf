//! Writing to the device: super-packets, or their packets one by one where the kernel refuses them.

use std::io::{self, IoSlice};

use crate::{
    io::tun::TunDevice,
    offload::{
        MAX_HEADERS,
        coalesce::{Coalescer, Pending, Slots},
        vnet::VNET_LEN,
    },
};

/// Writes all that waits for the LAN and forgets it; how many packets were lost, which without a device is all.
pub fn write(device: Option<&impl TunDevice>, lan: &mut Coalescer, slots: &impl Slots) -> u64 {
    let mut refused = None;
    let mut lost = 0;
    for pending in lan.pending() {
        let Some(device) = device else {
            lost += pending.count();
            continue;
        };
        match write_pending(device, pending, slots) {
            Ok(true) => {}
            Ok(false) => lost += pending.count(),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && pending.count() > 1 => {
                // Some kernels take the header and refuse what it says: one by one from now on.
                refused = Some(pending.gso(slots.bytes(pending.first())));
                for place in pending.apart() {
                    let parts = [IoSlice::new(&[0; VNET_LEN]), IoSlice::new(slots.bytes(place))];
                    lost += usize::from(!matches!(device.write(&parts), Ok(true)));
                }
            }
            Err(_) => lost += pending.count(),
        }
    }
    lan.clear();
    if let Some(gso) = refused {
        lan.disable(gso);
    }
    lost as u64
}

fn write_pending(device: &impl TunDevice, pending: &Pending, slots: &impl Slots) -> io::Result<bool> {
    /// The device's header, the packet's headers, the first payload and the others.
    const MOST: usize = 3 + 64;
    let first = slots.bytes(pending.first());
    if !device.vnet_hdr() {
        return device.write(&[IoSlice::new(first)]);
    }
    let (vnet, headers) = pending.headers(first);
    let Some((headers, len)): Option<([u8; MAX_HEADERS], usize)> = headers else {
        return device.write(&[IoSlice::new(&vnet), IoSlice::new(first)]);
    };
    let mut parts = [IoSlice::new(&[]); MOST];
    parts[0] = IoSlice::new(&vnet);
    parts[1] = IoSlice::new(&headers[..len]);
    parts[2] = IoSlice::new(&first[len..]);
    let mut count = 3;
    for (part, place) in parts[3..].iter_mut().zip(pending.rest()) {
        *part = IoSlice::new(slots.bytes(*place));
        count += 1;
    }
    device.write(&parts[..count])
}

//! An IKE SA takes its keys, and tells them where the settings ask for it.

use super::{Crypt, Cx, IkeSa};
use crate::crypto::{CryptoError, IkeKeys};
use crate::effect::Effect;

impl IkeSa {
    /// From now on its messages go under these keys.
    ///
    /// An additional key exchange replaces them (RFC 9370 section 2.2.2): then the SA is told of again, and a
    /// reader of the log, to whom the last one of an SA counts, reads what follows.
    pub(crate) fn take_keys(
        &mut self,
        cx: &mut Cx<'_>,
        keys: IkeKeys,
        generation: u32,
    ) -> Result<(), CryptoError> {
        if cx.settings.key_log {
            cx.effects.extend(keys.wireshark_row(self.spi_i, self.spi_r).map(Effect::KeyLog));
        }
        self.crypt = Some(Crypt::new(keys, self.initiator, generation)?);
        Ok(())
    }
}

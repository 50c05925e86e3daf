//! BGP between the loop's sockets and clocks.

use std::{sync::Arc, time::Instant};

use super::{Control, Failure};

impl Control {
    /// Lets BGP follow the turn and do a portion of its work, and tells the turn what it has chosen. To be called
    /// after every event: a tunnel that went down was masked by then, and takes its neighbor with it now.
    pub(super) async fn drive_bgp(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let config = self.turn.config();
        if !self.bgp_config.as_ref().is_some_and(|known| Arc::ptr_eq(known, config)) {
            self.bgp_config = Some(config.clone());
            self.bgp.configure(config, now);
        }
        self.bgp.follow(&self.turn, now);
        if !self.bgp.has_work() {
            self.turn.handle_quiet(self.start.elapsed());
            return Ok(());
        }
        if let Some(event) = self.bgp.work(now) {
            self.handle(event);
            self.run_effects().await?;
        }
        Ok(())
    }

    /// Tells all neighbors that the gateway stops.
    pub(super) async fn leave_bgp(&mut self) {
        self.bgp.stop(Instant::now());
        self.bgp.flush().await;
    }
}

//! Metrics between the loop and their thread.

use braid_api::{Query, Stats};
use tokio::sync::oneshot;

use super::{Control, Pending};
use crate::status::{self, Status};

impl Control {
    /// Has them answered where the configuration in force says.
    pub(super) fn drive_metrics(&mut self) {
        let listen = self.turn.config().metrics.map(|metrics| metrics.listen);
        self.metrics.listen(listen);
    }

    /// Somebody wants them.
    pub(super) fn scrape(&mut self, to: oneshot::Sender<Status>) {
        self.documents += 1;
        if self.greeted {
            self.query(Query::Stats, Pending::Scrape(to));
        } else {
            self.send_scrape(to, None);
        }
    }

    pub(super) fn send_scrape(&self, to: oneshot::Sender<Status>, stats: Option<&Stats>) {
        let status = status::without_routes(&self.turn, &self.ike, &self.bgp, stats, self.now());
        // Whoever waited too long does not want to know.
        let _ = to.send(status);
    }
}

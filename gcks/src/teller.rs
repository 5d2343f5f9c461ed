//! Tells of what happens: to the log and whoever watches, and of decisions to the audit log.

use std::sync::{Arc, PoisonError, RwLock};

use ctl::event::Event;
use runtime::hub::Hub;

use crate::audit::statements::Statements;
use crate::audit::{Recorder, is_decision};

/// Where a daemon publishes its events. Clones tell the same listeners, from any thread; it never waits.
#[derive(Debug, Clone)]
pub struct Teller {
    hub: Hub,
    recorder: Option<Recorder>,
    statements: Arc<RwLock<Statements>>,
}

impl From<Hub> for Teller {
    /// Without an audit log.
    fn from(hub: Hub) -> Teller {
        Teller { hub, recorder: None, statements: Arc::default() }
    }
}

impl Teller {
    /// With an audit log, and the configuration its decisions rest on.
    pub fn new(hub: Hub, recorder: Recorder, statements: Statements) -> Teller {
        Teller { hub, recorder: Some(recorder), statements: Arc::new(RwLock::new(statements)) }
    }

    /// Another configuration is used from now on.
    pub fn configured(&self, statements: Statements) {
        *self.statements.write().unwrap_or_else(PoisonError::into_inner) = statements;
    }

    /// How often each event was told, by name.
    pub fn told(&self) -> std::collections::BTreeMap<String, u64> {
        self.hub.told()
    }

    /// Tells everyone.
    pub fn publish(&self, unix_seconds: u64, event: &Event) {
        self.hub.publish(unix_seconds, event);
        if let Some(recorder) = &self.recorder
            && is_decision(event)
        {
            let statement = self.statements.read().unwrap_or_else(PoisonError::into_inner).of(event);
            recorder.event(unix_seconds, event, statement.as_deref());
        }
    }
}

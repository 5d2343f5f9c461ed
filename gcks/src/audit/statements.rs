//! Which statement of the configuration a decision rests on.

use std::collections::BTreeMap;
use std::path::Path;

use config::Gcks;
use ctl::event::Event;

/// Lines of the statements that decide about members, by name.
#[derive(Debug, Clone, Default)]
pub struct Statements {
    file: String,
    groups: BTreeMap<String, usize>,
    gateways: BTreeMap<String, usize>,
}

impl Statements {
    /// Of the configuration in `file`.
    pub fn new(file: &Path, config: &Gcks) -> Statements {
        Statements {
            file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            groups: config.groups.iter().map(|group| (group.name.clone(), group.line)).collect(),
            gateways: config.gateways.iter().map(|it| (it.name.clone(), it.line)).collect(),
        }
    }

    /// The group and the gateway an event names: `gcks.toml:7 ike.gateway.branches, gcks.toml:40 group.g1`.
    pub fn of(&self, event: &Event) -> Option<String> {
        let fields = serde_json::to_value(event).ok()?;
        let named = |field: &str, lines: &BTreeMap<String, usize>, table: &str| {
            let name = fields.get(field)?.as_str()?;
            let line = lines.get(name)?;
            Some(format!("{}:{line} {table}.{name}", self.file))
        };
        let found: Vec<String> =
            [named("gateway", &self.gateways, "ike.gateway"), named("group", &self.groups, "group")]
                .into_iter()
                .flatten()
                .collect();
        (!found.is_empty()).then(|| found.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_the_lines_of_its_gateway_and_its_group() {
        let statements = Statements {
            file: "gcks.toml".to_owned(),
            groups: [("g1".to_owned(), 40)].into(),
            gateways: [("branches".to_owned(), 7)].into(),
        };
        let text = |value: &str| value.to_owned();
        let registered = |gateway: &str| Event::MemberRegistered {
            group: text("g1"),
            member: text("gm1"),
            address: text("10.0.0.1:848"),
            gateway: text(gateway),
        };
        assert_eq!(
            statements.of(&registered("branches")).as_deref(),
            Some("gcks.toml:7 ike.gateway.branches, gcks.toml:40 group.g1")
        );
        assert_eq!(statements.of(&registered("")).as_deref(), Some("gcks.toml:40 group.g1"));
        assert_eq!(statements.of(&Event::DaemonStopping), None);
    }
}

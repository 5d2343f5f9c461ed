//! Reading a TOML table statement by statement: what is asked for is typed, what nobody asked for is refused.

use std::cell::RefCell;
use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Place, Report};
use crate::units;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Item<'t> {
    /// Path and octets.
    pub place: Place,
    /// The TOML value.
    pub value: &'t DeValue<'t>,
}

/// A table being read. [`Table::finish`] refuses the keys that no reader took.
#[derive(Debug)]
pub struct Table<'t> {
    /// Path and octets of the table.
    pub place: Place,
    entries: Vec<(&'t str, Item<'t>, Place)>,
    taken: RefCell<BTreeSet<String>>,
    report: &'t Report<'t>,
}

/// Parses `text` and hands its root table to `read`; none when the syntax is wrong (reported).
pub fn with_root<R>(text: &str, report: &Report<'_>, read: impl FnOnce(&Table<'_>) -> R) -> Option<R> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        // Only the message: the parser's own rendering would quote the line, and with it a misplaced secret.
        let place = Place { statement: String::new(), span: error.span().unwrap_or(0..0) };
        report.problem(&place, error.message(), "TOML syntax");
    }
    if !errors.is_empty() {
        return None;
    }
    let place = Place { statement: String::new(), span: 0..0 };
    let table = Table::new(place, root.get_ref(), report);
    let result = read(&table);
    table.finish();
    Some(result)
}

impl<'t> Table<'t> {
    fn new(place: Place, table: &'t DeTable<'t>, report: &'t Report<'t>) -> Table<'t> {
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value): (&'t Spanned<_>, &'t Spanned<_>)| {
                let name: &'t str = key.get_ref();
                let mut at = place.child(name);
                at.span = key.span();
                let mut value_at = at.clone();
                value_at.span = value.span();
                (name, Item { place: value_at, value: value.get_ref() }, at)
            })
            .collect();
        entries.sort_by_key(|(_, _, at)| at.span.start);
        Table { place, entries, taken: RefCell::default(), report }
    }

    /// The report this table's problems go to.
    pub fn report(&self) -> &'t Report<'t> {
        self.report
    }

    /// Where `name` stands, or would stand.
    pub fn place_of(&self, name: &str) -> Place {
        self.entries
            .iter()
            .find(|(key, _, _)| *key == name)
            .map_or_else(|| self.place.child(name), |(_, _, at)| at.clone())
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<Item<'t>> {
        self.taken.borrow_mut().insert(name.to_owned());
        self.entries.iter().find(|(key, _, _)| *key == name).map(|(_, item, _)| item.clone())
    }

    /// The value of `name`, whose absence is a problem; `hint` says what belongs there.
    pub fn require(&self, name: &str, hint: &str) -> Option<Item<'t>> {
        let item = self.get(name);
        if item.is_none() {
            self.report.problem(&self.place, format!("{name} is missing"), hint);
        }
        item
    }

    /// True when `name` is stated; it counts as read.
    pub fn states(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Refuses `name` when it is stated: a later version reads it.
    pub fn later(&self, name: &str, what: &str) {
        if self.states(name) {
            self.report.not_supported(&self.place_of(name), what);
        }
    }

    /// The table `name`.
    pub fn table(&self, name: &str) -> Option<Table<'t>> {
        let item = self.get(name)?;
        let mut table = item.table(self.report)?;
        table.place = self.place_of(name);
        Some(table)
    }

    /// The table `name`, an empty one when it is absent or no table.
    pub fn section(&self, name: &str) -> Table<'t> {
        self.table(name).unwrap_or_else(|| Table {
            place: self.place_of(name),
            entries: Vec::new(),
            taken: RefCell::default(),
            report: self.report,
        })
    }

    /// The tables below table `name`, with their names, in the order of the file.
    pub fn named_tables(&self, name: &str) -> Vec<(&'t str, Table<'t>)> {
        let Some(parent) = self.table(name) else { return Vec::new() };
        parent.tables()
    }

    /// Every entry as a table with its name, in the order of the file.
    pub fn tables(&self) -> Vec<(&'t str, Table<'t>)> {
        let mut out = Vec::new();
        for (key, item, at) in &self.entries {
            self.taken.borrow_mut().insert((*key).to_owned());
            if let Some(mut table) = item.table(self.report) {
                table.place = at.clone();
                out.push((*key, table));
            }
        }
        out
    }

    /// The array of tables `name`.
    pub fn table_list(&self, name: &str) -> Vec<Table<'t>> {
        let Some(item) = self.get(name) else { return Vec::new() };
        item.items(self.report).iter().filter_map(|item| item.table(self.report)).collect()
    }

    /// Text, or `default`.
    pub fn text(&self, name: &str, default: &str) -> String {
        self.get(name).and_then(|item| item.text(self.report)).unwrap_or(default).to_owned()
    }

    /// A truth value, or `default`.
    pub fn boolean(&self, name: &str, default: bool) -> bool {
        self.get(name).and_then(|item| item.boolean(self.report)).unwrap_or(default)
    }

    /// A number within `range`, or `default`.
    pub fn number(&self, name: &str, range: (u64, u64), default: u64) -> u64 {
        self.get(name).and_then(|item| item.number(self.report, range)).unwrap_or(default)
    }

    /// Seconds within `range` (an integer, or text with a unit), when stated.
    pub fn seconds(&self, name: &str, range: (u64, u64)) -> Option<u64> {
        self.get(name)?.duration(self.report, range, 1000, "s")
    }

    /// Milliseconds within `range` (an integer, or text with a unit), when stated.
    pub fn milliseconds(&self, name: &str, range: (u64, u64)) -> Option<u64> {
        self.get(name)?.duration(self.report, range, 1, "ms")
    }

    /// One of `words`; `default` when absent, a problem when there is none.
    pub fn word<T: Clone>(&self, name: &str, words: &[(&str, T)], default: Option<T>) -> Option<T> {
        let list = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" | ");
        let item = match default {
            None => self.require(name, &list())?,
            Some(default) => match self.get(name) {
                Some(item) => item,
                None => return Some(default),
            },
        };
        item.word(self.report, words)
    }

    /// Refuses every key that nobody asked for, with the nearest key that exists.
    pub fn finish(&self) {
        let taken = self.taken.borrow();
        for (key, _, at) in &self.entries {
            if !taken.contains(*key) {
                let hint = units::nearest(key, taken.iter().map(String::as_str))
                    .map(|near| format!("did you mean {near}?"))
                    .unwrap_or_default();
                self.report.problem(at, "unknown statement", hint);
            }
        }
    }
}

impl<'t> Item<'t> {
    fn mismatch(&self, report: &Report<'_>, expected: &str) {
        report.problem(&self.place, format!("{} where {expected} belongs", self.value.type_str()), "");
    }

    /// The value as a table.
    pub fn table(&self, report: &'t Report<'t>) -> Option<Table<'t>> {
        match self.value.as_table() {
            Some(table) => Some(Table::new(self.place.clone(), table, report)),
            None => {
                self.mismatch(report, "table");
                None
            }
        }
    }

    /// The elements of an array.
    pub fn items(&self, report: &Report<'_>) -> Vec<Item<'t>> {
        let Some(array) = self.value.as_array() else {
            self.mismatch(report, "array");
            return Vec::new();
        };
        let item = |value: &'t Spanned<DeValue<'t>>| {
            let mut place = self.place.clone();
            place.span = value.span();
            Item { place, value: value.get_ref() }
        };
        array.iter().map(item).collect()
    }

    /// The elements of an array, or the value itself when it is none.
    pub fn one_or_more(&self, report: &Report<'_>) -> Vec<Item<'t>> {
        if self.value.is_array() { self.items(report) } else { vec![self.clone()] }
    }

    /// Text.
    pub fn text(&self, report: &Report<'_>) -> Option<&'t str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.mismatch(report, "string");
        }
        text
    }

    /// Text that is not empty.
    pub fn filled_text(&self, report: &Report<'_>) -> Option<&'t str> {
        let text = self.text(report)?;
        if text.is_empty() {
            report.problem(&self.place, "is empty", "");
            return None;
        }
        Some(text)
    }

    /// A truth value.
    pub fn boolean(&self, report: &Report<'_>) -> Option<bool> {
        let value = self.value.as_bool();
        if value.is_none() {
            self.mismatch(report, "boolean");
        }
        value
    }

    fn integer(&self) -> Option<i128> {
        let integer = self.value.as_integer()?;
        i128::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    fn within(&self, report: &Report<'_>, value: i128, (low, high): (u64, u64), unit: &str) -> Option<u64> {
        match u64::try_from(value) {
            Ok(fits) if (low..=high).contains(&fits) => Some(fits),
            _ => {
                report.problem(
                    &self.place,
                    format!("{value}{unit} is out of range"),
                    format!("{low}-{high}{unit}"),
                );
                None
            }
        }
    }

    /// A number within `range`.
    pub fn number(&self, report: &Report<'_>, range: (u64, u64)) -> Option<u64> {
        match self.integer() {
            Some(value) => self.within(report, value, range, ""),
            None => {
                self.mismatch(report, "integer");
                None
            }
        }
    }

    /// A duration within `range`, counted in units of `scale` milliseconds.
    fn duration(&self, report: &Report<'_>, range: (u64, u64), scale: u64, unit: &str) -> Option<u64> {
        let value = match self.value.as_str() {
            None if self.integer().is_none() => {
                self.mismatch(report, "integer or duration");
                return None;
            }
            None => self.integer()?,
            Some(text) => match units::duration_milliseconds(text) {
                Some(milliseconds) if milliseconds % scale == 0 => i128::from(milliseconds / scale),
                _ => {
                    report.problem(
                        &self.place,
                        format!("{text:?} is not a duration in whole {unit}"),
                        "a number with a unit: \"90s\", \"15m\", \"24h\", \"7d\"",
                    );
                    return None;
                }
            },
        };
        self.within(report, value, range, &format!(" {unit}"))
    }

    /// An address.
    pub fn address(&self, report: &Report<'_>) -> Option<std::net::IpAddr> {
        let address = self.text(report)?.parse().ok();
        if address.is_none() {
            report.problem(&self.place, "not an address", "IPv4 or IPv6, without a port");
        }
        address
    }

    /// A moment of the wall clock in Unix seconds: date, time and offset.
    pub fn moment(&self, report: &Report<'_>) -> Option<u64> {
        let Some(datetime) = self.value.as_datetime() else {
            self.mismatch(report, "datetime");
            return None;
        };
        let moment = units::unix_seconds(datetime);
        if moment.is_none() {
            report.problem(
                &self.place,
                format!("{datetime} is not a moment from 1970 on"),
                "date, time and offset: 2027-01-31T00:00:00Z, or with +01:00 for Z",
            );
        }
        moment
    }

    /// An address prefix without host bits.
    pub fn prefix(&self, report: &Report<'_>) -> Option<units::AddressPrefix> {
        match units::AddressPrefix::parse(self.text(report)?) {
            Ok(prefix) => Some(prefix),
            Err((what, hint)) => {
                report.problem(&self.place, what, hint);
                None
            }
        }
    }

    /// An IP protocol: a number of 0-255 or a name.
    pub fn protocol(&self, report: &Report<'_>) -> Option<u8> {
        let Some(text) = self.value.as_str() else {
            return self.number(report, (0, 255)).and_then(|number| u8::try_from(number).ok());
        };
        let protocol = units::protocol(text);
        if protocol.is_none() {
            report.problem(
                &self.place,
                format!("{text:?} is no IP protocol"),
                "0 (any), a number, tcp, udp, icmp, …",
            );
        }
        protocol
    }

    /// One of `words`.
    pub fn word<T: Clone>(&self, report: &Report<'_>, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(report)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone());
        if found.is_none() {
            let list = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" | ");
            report.problem(&self.place, format!("{text:?} is not known"), list);
        }
        found
    }
}

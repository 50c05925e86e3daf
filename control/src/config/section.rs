//! Reading one TOML table: every key is known or reported, every value has a line.

use core::fmt;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::error::{Fault, Report};

/// Keys of one kind of table.
#[derive(Debug)]
pub(super) struct Schema {
    /// Dotted path as shown in errors.
    pub(super) path: &'static str,
    /// All that it may have.
    pub(super) keys: &'static [&'static str],
}

/// A table being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'t> {
    schema: &'static Schema,
    table: &'t DeTable<'t>,
    start: usize,
}

impl<'t> Section<'t> {
    /// Reports unknown keys.
    pub(super) fn open(
        schema: &'static Schema,
        table: &'t DeTable<'t>,
        start: usize,
        report: &mut Report,
    ) -> Self {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if schema.keys.contains(&name) {
                continue;
            }
            let fault = Fault::UnknownKey { nearest: nearest(name, schema), known: schema.keys };
            report.error(key.span(), Path(schema.path, name), fault);
        }
        Section { schema, table, start }
    }

    /// Where the table begins.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    pub(super) fn get(&self, name: &'static str) -> Option<Item<'t>> {
        debug_assert!(self.schema.keys.contains(&name), "{name} is not in the schema");
        self.table.get(name).map(|value| Item { section: self.schema.path, name, value })
    }

    /// Reports the key as missing.
    pub(super) fn require(
        &self,
        name: &'static str,
        example: impl Into<String>,
        report: &mut Report,
    ) -> Option<Item<'t>> {
        let item = self.get(name);
        if item.is_none() {
            let fault = Fault::Missing { example: example.into() };
            report.error(self.start..self.start, Path(self.schema.path, name), fault);
        }
        item
    }
}

/// A value with the key it belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'t> {
    section: &'static str,
    name: &'static str,
    value: &'t Spanned<DeValue<'t>>,
}

impl<'t> Item<'t> {
    pub(super) fn fault(&self, report: &mut Report, fault: Fault) {
        report.error(self.value.span(), Path(self.section, self.name), fault);
    }

    pub(super) fn invalid(&self, report: &mut Report, problem: impl Into<String>, remedy: impl Into<String>) {
        self.fault(report, Fault::Invalid { problem: problem.into(), remedy: remedy.into() });
    }

    fn wrong_type<T>(&self, expected: &'static str, report: &mut Report) -> Option<T> {
        let found = match self.value.get_ref() {
            DeValue::String(_) => "a string stands",
            DeValue::Integer(_) => "an integer stands",
            DeValue::Float(_) => "a decimal number stands",
            DeValue::Boolean(_) => "true or false stands",
            DeValue::Datetime(_) => "a date stands",
            DeValue::Array(_) => "a list stands",
            DeValue::Table(_) => "a table stands",
        };
        self.fault(report, Fault::WrongType { expected, found });
        None
    }

    pub(super) fn is_string(&self) -> bool {
        self.value.get_ref().is_str()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    pub(super) fn is_empty_list(&self) -> bool {
        self.value.get_ref().as_array().is_some_and(|array| array.is_empty())
    }

    pub(super) fn string(&self, report: &mut Report) -> Option<&'t str> {
        match self.value.get_ref().as_str() {
            Some(text) => Some(text),
            None => self.wrong_type("a string", report),
        }
    }

    pub(super) fn boolean(&self, report: &mut Report) -> Option<bool> {
        match self.value.get_ref().as_bool() {
            Some(value) => Some(value),
            None => self.wrong_type("true or false", report),
        }
    }

    /// An integer within bounds.
    pub(super) fn integer(&self, min: i64, max: i64, report: &mut Report) -> Option<i64> {
        let Some(number) = self.value.get_ref().as_integer() else {
            return self.wrong_type("an integer", report);
        };
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) if (min..=max).contains(&value) => Some(value),
            _ => {
                self.invalid(report, format!("{number} is out of range"), format!("{min} to {max} is right"));
                None
            }
        }
    }

    /// A string that `parse` understands; its error says what is wrong and what would be right.
    pub(super) fn parse<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
        report: &mut Report,
    ) -> Option<T> {
        let text = self.string(report)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.fault(report, fault);
                None
            }
        }
    }

    /// The items of a list.
    pub(super) fn list(&self, max: usize, report: &mut Report) -> Vec<Item<'t>> {
        let Some(array) = self.value.get_ref().as_array() else {
            self.wrong_type::<()>("a list", report);
            return Vec::new();
        };
        if array.len() > max {
            self.invalid(report, format!("{} entries", array.len()), format!("at most {max} are possible"));
            return Vec::new();
        }
        array.iter().map(|value| Item { value, ..*self }).collect()
    }

    /// A string, or a list of strings, each understood by `parse`.
    pub(super) fn one_or_list<T>(
        &self,
        max: usize,
        parse: impl Fn(&str) -> Result<T, Fault>,
        report: &mut Report,
    ) -> Vec<(T, Item<'t>)> {
        let items = if self.is_string() { vec![*self] } else { self.list(max, report) };
        items.into_iter().filter_map(|item| Some((item.parse(&parse, report)?, item))).collect()
    }

    /// A table of this schema.
    pub(super) fn section(&self, schema: &'static Schema, report: &mut Report) -> Option<Section<'t>> {
        match self.value.get_ref().as_table() {
            Some(table) => Some(Section::open(schema, table, self.value.span().start, report)),
            None => self.wrong_type("a table", report),
        }
    }

    /// A list of tables of this schema (`[[name]]`).
    pub(super) fn sections(
        &self,
        schema: &'static Schema,
        max: usize,
        report: &mut Report,
    ) -> Vec<Section<'t>> {
        if self.is_table() {
            let problem = format!("[{}] is one table", self.name);
            self.invalid(report, problem, format!("write [[{}]], since there may be several", self.name));
            return Vec::new();
        }
        let items = self.list(max, report);
        items.into_iter().filter_map(|item| item.section(schema, report)).collect()
    }
}

/// Dotted path of a key.
struct Path<'a>(&'a str, &'a str);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() {
            write!(f, "{}.", self.0)?;
        }
        f.write_str(self.1)
    }
}

/// The known key that a mistyped one resembles, if any does.
fn nearest(name: &str, schema: &Schema) -> Option<&'static str> {
    const ALIKE: f64 = 0.75;
    let plain = name.replace('_', "-").to_lowercase();
    let (score, key) = schema
        .keys
        .iter()
        .copied()
        .map(|key| (strsim::jaro_winkler(&plain, key), key))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score >= ALIKE).then_some(key)
}

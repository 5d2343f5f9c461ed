//! What is wrong with a file, where, and what would be right. Nothing here ever holds a secret.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Something a file must not say. Prints as `gcks.toml:12:5: group.G1.lifetime-seconds: what (hint)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The configuration file as named on the command line.
    pub file: PathBuf,
    /// Line, from 1; 0 when the file could not be read.
    pub line: usize,
    /// Column in characters, from 1; 0 when the file could not be read.
    pub column: usize,
    /// Dotted path of the statement; empty for syntax errors.
    pub statement: String,
    /// What is wrong.
    pub what: String,
    /// What would be right; empty when obvious.
    pub hint: String,
}

/// Something that works but is weaker than it looks; same fields and form as [`Problem`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The configuration file as named on the command line.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Dotted path of the statement.
    pub statement: String,
    /// What is weak.
    pub what: String,
    /// What would be better; may be empty.
    pub hint: String,
}

/// Every problem of a file, in the order of the file; one per line when printed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Errors(pub Vec<Problem>);

/// A configuration that may be used.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// The configuration, every reference resolved.
    pub config: T,
    /// For `--check` and the log at start, in the order of the file.
    pub warnings: Vec<Warning>,
    /// For `--check` only: defaults that this build does not act on yet.
    pub notices: Vec<String>,
    /// Files that were read beside the configuration itself.
    pub files: Vec<PathBuf>,
}

impl Problem {
    /// The file cannot be read at all.
    pub fn of_file(path: &Path, error: &std::io::Error) -> Problem {
        Problem {
            file: path.to_owned(),
            line: 0,
            column: 0,
            statement: String::new(),
            what: format!("cannot be read: {error}"),
            hint: String::new(),
        }
    }
}

fn print(
    f: &mut fmt::Formatter<'_>,
    (file, line, column): (&Path, usize, usize),
    (statement, what, hint): (&str, &str, &str),
) -> fmt::Result {
    write!(f, "{}:", file.display())?;
    if line > 0 {
        write!(f, "{line}:{column}:")?;
    }
    if !statement.is_empty() {
        write!(f, " {statement}:")?;
    }
    write!(f, " {what}")?;
    if !hint.is_empty() {
        write!(f, " ({hint})")?;
    }
    Ok(())
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, (&self.file, self.line, self.column), (&self.statement, &self.what, &self.hint))
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, (&self.file, self.line, self.column), (&self.statement, &self.what, &self.hint))
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}
impl std::error::Error for Errors {}

/// Where a statement stands: its dotted path and its octets in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Dotted path, `group.G1.member-threshold`.
    pub statement: String,
    /// Octets of the file.
    pub span: Range<usize>,
}

impl Place {
    /// A statement below this one at the same octets.
    pub fn child(&self, name: &str) -> Place {
        let statement =
            if self.statement.is_empty() { name.to_owned() } else { format!("{}.{name}", self.statement) };
        Place { statement, span: self.span.clone() }
    }
}

/// Collects problems while a file is read, so that one run reports them all.
#[derive(Debug)]
pub struct Report<'a> {
    path: &'a Path,
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Warning>>,
    notices: RefCell<Vec<String>>,
    files: RefCell<BTreeSet<PathBuf>>,
    /// `approved-only`.
    approved_only: Cell<bool>,
}

impl<'a> Report<'a> {
    /// A report on `text`, read from `path`.
    pub fn new(path: &'a Path, text: &'a str) -> Report<'a> {
        Report {
            path,
            text,
            problems: RefCell::default(),
            warnings: RefCell::default(),
            notices: RefCell::default(),
            files: RefCell::default(),
            approved_only: Cell::default(),
        }
    }

    /// Directory that relative file names start from.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Line and column of octet `offset`, both from 1; the column counts characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|octet| *octet == b'\n').count() + 1;
        (line, before.get(line_start..).unwrap_or("").chars().count() + 1)
    }

    /// Line of `place`, from 1.
    pub fn line(&self, place: &Place) -> usize {
        self.position(place.span.start).0
    }

    /// Notes a problem at `place`; `hint` may be empty.
    pub fn problem(&self, place: &Place, what: impl Into<String>, hint: impl Into<String>) {
        let (line, column) = self.position(place.span.start);
        self.problems.borrow_mut().push(Problem {
            file: self.path.to_owned(),
            line,
            column,
            statement: place.statement.clone(),
            what: what.into(),
            hint: hint.into(),
        });
    }

    /// Notes a statement of a later version. It is refused, because ignoring it would promise what does not happen.
    pub fn not_supported(&self, place: &Place, what: &str) {
        let last = place.statement.rsplit('.').next().unwrap_or_default();
        self.problem(place, format!("not supported yet: {last} {what}"), "");
    }

    /// Notes a warning at `place`; `hint` may be empty.
    pub fn warning(&self, place: &Place, what: impl Into<String>, hint: impl Into<String>) {
        let (line, column) = self.position(place.span.start);
        self.warnings.borrow_mut().push(Warning {
            file: self.path.to_owned(),
            line,
            column,
            statement: place.statement.clone(),
            what: what.into(),
            hint: hint.into(),
        });
    }

    /// The file says `approved-only`: from now on weakness is a problem.
    pub fn approve_only(&self) {
        self.approved_only.set(true);
    }

    /// True when the file says `approved-only`.
    pub fn is_approved_only(&self) -> bool {
        self.approved_only.get()
    }

    /// Notes a weak choice: a warning, or with `approved-only` a problem; `hint` may be empty.
    pub fn weak(&self, place: &Place, what: impl Into<String>, hint: impl Into<String>) {
        match self.is_approved_only() {
            true => self.problem(place, what, hint),
            false => self.warning(place, what, hint),
        }
    }

    /// Notes a choice that is good enough except with `approved-only`; `hint` says what is approved.
    pub fn unapproved(&self, place: &Place, what: impl std::fmt::Display, hint: &str) {
        if self.is_approved_only() {
            self.problem(place, format!("{what} is outside approved-only"), hint);
        }
    }

    /// Notes something for `--check` alone.
    pub fn notice(&self, text: &str) {
        self.notices.borrow_mut().push(text.to_owned());
    }

    /// Notes a file that is read.
    pub fn reads(&self, path: &Path) {
        self.files.borrow_mut().insert(path.to_owned());
    }

    /// The configuration when nothing is wrong.
    ///
    /// # Errors
    /// Everything noted, in the order of the file.
    pub fn finish<T>(self, config: Option<T>) -> Result<Loaded<T>, Errors> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems.dedup();
        let mut warnings = self.warnings.into_inner();
        warnings.sort_by_key(|warning| (warning.line, warning.column));
        warnings.dedup();
        match config {
            Some(config) if problems.is_empty() => {
                let files = self.files.into_inner().into_iter().collect();
                Ok(Loaded { config, warnings, notices: self.notices.into_inner(), files })
            }
            _ => Err(Errors(problems)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_prints_file_line_column_statement_cause_and_hint() {
        let report = Report::new(Path::new("gcks.toml"), "a = 1\n\u{e9} b = 2\n");
        let place = Place { statement: "group.G1.b".into(), span: 9..10 };
        report.problem(&place, "2 is wrong", "1");
        report.problem(&Place { statement: String::new(), span: 0..1 }, "first", "");
        let errors = report.finish(Some(())).unwrap_err();
        assert_eq!(errors.to_string(), "gcks.toml:1:1: first\ngcks.toml:2:3: group.G1.b: 2 is wrong (1)");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_without_a_line() {
        let errors = crate::load_gcks(Path::new("no/such.toml"), crate::Options::default()).unwrap_err();
        assert!(errors.to_string().starts_with("no/such.toml: cannot be read: "), "{errors}");
    }
}

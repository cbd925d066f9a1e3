//! TOML files read so that *every* problem is reported, with line, column, key and a suggestion.
//!
//! `serde` stops at the first error; catalog and policies are walked as spanned tables instead. Knows nothing of what the
//! files mean.

use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One problem of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key it is about, such as `rules[0].when`; empty for syntax errors.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What would be right; may be empty.
    pub suggestion: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.key.is_empty() {
            write!(formatter, "`{}`: ", self.key)?;
        }
        formatter.write_str(&self.message)?;
        if !self.suggestion.is_empty() {
            write!(formatter, "; {}", self.suggestion)?;
        }
        Ok(())
    }
}

/// Collects the problems of one text.
pub struct Problems<'text> {
    file: &'text str,
    text: &'text str,
    found: Vec<Problem>,
}

/// A value and where it stands.
pub type Value<'text> = Spanned<DeValue<'text>>;

impl<'text> Problems<'text> {
    /// Parses `text` of `file`; syntax errors are the first problems.
    pub fn parse(file: &'text str, text: &'text str) -> (Spanned<DeTable<'text>>, Self) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut problems = Self { file, text, found: Vec::new() };
        for error in errors {
            problems.add(error.span().unwrap_or(0..0), "", error.message(), "");
        }
        (table, problems)
    }

    /// A place `offset` bytes within the quoted text at a span: after its opening quotes.
    pub fn inside(&self, span: &Range<usize>, offset: usize) -> Range<usize> {
        let quoted = self.text.get(span.clone()).unwrap_or_default();
        let long = quoted.starts_with("\'\'\'") || quoted.starts_with("\"\"\"");
        let opening = match long {
            // A line break right after three quotes is no part of the text.
            true => 3 + quoted.get(3..).map_or(0, |rest| rest.len() - rest.trim_start_matches('\r').len()),
            false => 1,
        };
        let opening = opening + usize::from(long && quoted.get(opening..).is_some_and(|rest| rest.starts_with('\n')));
        let at = (span.start + opening + offset).min(span.end);
        at..at
    }

    /// Adds a problem at a span.
    pub fn add(&mut self, span: Range<usize>, key: &str, message: impl Into<String>, suggestion: impl Into<String>) {
        let before = self.text.get(..span.start.min(self.text.len())).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |index| index + 1);
        self.found.push(Problem {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            key: key.to_owned(),
            message: message.into(),
            suggestion: suggestion.into(),
        });
    }

    /// All problems in the order of the file.
    pub fn into_found(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|problem| (problem.line, problem.column));
        self.found
    }
}

/// A table whose keys are taken one by one; what nobody took is an unknown key.
pub struct Section<'doc, 'text> {
    table: &'doc DeTable<'text>,
    span: Range<usize>,
    path: String,
    known: Vec<&'static str>,
}

impl<'doc, 'text> Section<'doc, 'text> {
    /// The whole file.
    pub fn root(table: &'doc Spanned<DeTable<'text>>) -> Self {
        Self { table: table.get_ref(), span: 0..0, path: String::new(), known: Vec::new() }
    }

    /// The path of a key in this section.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Where the section stands.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The value of a key, if it is there.
    pub fn take(&mut self, key: &'static str) -> Option<&'doc Value<'text>> {
        self.known.push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// Where a key's value stands; the section if there is none.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        let found = self.table.iter().find(|(name, _)| name.get_ref() == key);
        found.map_or_else(|| self.span(), |(_, value)| value.span())
    }

    /// Whether a key is there, right or wrong.
    pub fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(name, _)| name.get_ref() == key)
    }

    fn inner(&self, table: &str) -> Option<&'doc DeTable<'text>> {
        let found = self.table.iter().find(|(name, _)| name.get_ref() == table);
        found.and_then(|(_, value)| value.get_ref().as_table())
    }

    /// Whether a key of a table in this section is there.
    pub fn has_in(&self, table: &str, key: &str) -> bool {
        self.inner(table).is_some_and(|inner| inner.iter().any(|(name, _)| name.get_ref() == key))
    }

    /// Where the value of a key of a table in this section stands; the table if the key is not there.
    pub fn span_in(&self, table: &str, key: &str) -> Range<usize> {
        let found = self.inner(table).and_then(|inner| inner.iter().find(|(name, _)| name.get_ref() == key));
        found.map_or_else(|| self.span_of(table), |(_, value)| value.span())
    }

    /// All keys and values, for tables with free keys.
    pub fn take_all(&mut self) -> Vec<(String, Range<usize>, &'doc Value<'text>)> {
        let entry = |(key, value): (&'doc Spanned<std::borrow::Cow<'text, str>>, &'doc Value<'text>)| {
            (key.get_ref().to_string(), key.span(), value)
        };
        self.table.iter().map(entry).collect()
    }

    /// A key's value as text.
    pub fn text(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<(String, Range<usize>)> {
        let value = self.take(key)?;
        match value.get_ref().as_str() {
            Some(text) => Some((text.to_owned(), value.span())),
            None => self.wrong(key, value, "a text in quotes", problems),
        }
    }

    /// A key's value as a number.
    pub fn number(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<(f64, Range<usize>)> {
        let value = self.take(key)?;
        let digits = match value.get_ref() {
            DeValue::Integer(integer) => integer.as_str().to_owned(),
            DeValue::Float(float) => float.as_str().to_owned(),
            _ => return self.wrong(key, value, "a number", problems),
        };
        match digits.replace('_', "").parse::<f64>() {
            Ok(number) if number.is_finite() => Some((number, value.span())),
            _ => self.wrong(key, value, "a finite number", problems),
        }
    }

    /// A key's value as a number within a range.
    pub fn number_in(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<f64>,
        problems: &mut Problems<'_>,
    ) -> Option<f64> {
        let (number, span) = self.number(key, problems)?;
        if range.contains(&number) {
            return Some(number);
        }
        let message = format!("{number} is not within {}..={}", range.start(), range.end());
        problems.add(span, &self.path(key), message, "");
        None
    }

    /// A key's value as a positive integer.
    pub fn count(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<u64> {
        let (number, span) = self.number(key, problems)?;
        if number >= 1.0 && number.fract() == 0.0 && number <= 9e15 {
            return Some(number as u64);
        }
        problems.add(span, &self.path(key), format!("{number} is not a positive whole number"), "");
        None
    }

    /// A key's value as true or false.
    pub fn flag(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<bool> {
        let value = self.take(key)?;
        match value.get_ref().as_bool() {
            Some(flag) => Some(flag),
            None => self.wrong(key, value, "true or false", problems),
        }
    }

    /// A key's value as one of some words.
    pub fn word(
        &mut self,
        key: &'static str,
        words: &[&'static str],
        problems: &mut Problems<'_>,
    ) -> Option<&'static str> {
        let (text, span) = self.text(key, problems)?;
        let found = words.iter().find(|word| **word == text);
        if found.is_none() {
            let suggestion = suggest(&text, words.iter().copied());
            problems.add(span, &self.path(key), format!("`{text}` is none of {}", words.join(", ")), suggestion);
        }
        found.copied()
    }

    /// A key's value as a list of texts.
    pub fn texts(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<Vec<(String, Range<usize>)>> {
        let value = self.take(key)?;
        let Some(array) = value.get_ref().as_array() else {
            return self.wrong(key, value, "a list of texts", problems);
        };
        let mut texts = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_str() {
                Some(text) => texts.push((text.to_owned(), item.span())),
                None => problems.add(item.span(), &self.path(key), "should be a text in quotes", ""),
            }
        }
        Some(texts)
    }

    /// A key's value as a section.
    pub fn section(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Option<Self> {
        let value = self.take(key)?;
        match value.get_ref().as_table() {
            Some(table) => Some(Self { table, span: value.span(), path: self.path(key), known: Vec::new() }),
            None => self.wrong(key, value, "a table", problems),
        }
    }

    /// A key's value as a list of sections (`[[key]]`).
    pub fn sections(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Vec<Self> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong::<()>(key, value, &format!("a list of tables, [[{key}]]"), problems);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in array.iter().enumerate() {
            let path = format!("{}[{index}]", self.path(key));
            match item.get_ref().as_table() {
                Some(table) => sections.push(Self { table, span: item.span(), path, known: Vec::new() }),
                None => problems.add(item.span(), &path, "should be a table", ""),
            }
        }
        sections
    }

    /// Says that a key is missing, if it is: one that is there but wrong has its own problem.
    pub fn missing(&self, key: &str, what: &str, problems: &mut Problems<'_>) {
        if self.has(key) {
            return;
        }
        problems.add(self.span(), &self.path(key), "is missing", what);
    }

    /// Reports every key that nobody took.
    pub fn finish(self, problems: &mut Problems<'_>) {
        for (name, _) in self.table.iter() {
            if !self.known.contains(&name.get_ref().as_ref()) {
                let suggestion = suggest(name.get_ref(), self.known.iter().copied());
                problems.add(name.span(), &self.path(name.get_ref()), "is not a key here", suggestion);
            }
        }
    }

    fn wrong<T>(&self, key: &str, value: &Value<'_>, wanted: &str, problems: &mut Problems<'_>) -> Option<T> {
        let message = format!("is {} where {wanted} belongs", value.get_ref().type_str());
        problems.add(value.span(), &self.path(key), message, "");
        None
    }
}

/// `did you mean …?` with the nearest of some words, or all of them if none is near.
pub fn suggest<'word>(given: &str, words: impl Iterator<Item = &'word str>) -> String {
    let words: Vec<&str> = words.collect();
    let nearest = words.iter().map(|word| (distance(given, word), *word)).min();
    match nearest {
        Some((distance, word)) if distance <= 1 + given.chars().count() / 3 => format!("did you mean `{word}`?"),
        _ if words.is_empty() => String::new(),
        _ => format!("known: {}", words.join(", ")),
    }
}

/// Edit distance (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

//! Recorded drafts: rows of outcomes, each with what the small model wrote and how sure it was.

use super::draft::{Draft, TokenFacts};
use crate::evidence::grading::agree;
use crate::evidence::outcome::{Outcome, OutcomeError, Outcomes};
use serde::Deserialize;
use std::collections::HashMap;

/// An outcome with its draft.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedDraft {
    /// What it was worth.
    pub outcome: Outcome,
    /// What was written.
    pub text: String,
    /// How sure the model was of each token.
    pub tokens: Vec<TokenFacts>,
    /// Whether it was cut off.
    pub cut: bool,
    /// Whether the model declined: no judge is asked then.
    pub declined: bool,
    /// Share of other answers that agreed, where others were asked.
    pub agrees: Option<f64>,
    /// Who was asked: `sample`, or another small model; empty where nobody was or it is not told.
    pub second: String,
}

/// Why drafts can't be read.
#[derive(Debug, thiserror::Error)]
pub enum DraftsError {
    /// The file can't be read.
    #[error("{file}: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        reason: String,
    },
    /// A row's draft is none.
    #[error("{file}:{line}: `draft` {problem}")]
    Draft {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and the mend.
        problem: String,
    },
    /// The rows are no outcomes.
    #[error(transparent)]
    Outcomes(#[from] OutcomeError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDraft {
    text: String,
    logprobs: Vec<f64>,
    #[serde(default)]
    margins: Vec<f64>,
    #[serde(default)]
    likeliest: Vec<Vec<f64>>,
    #[serde(default)]
    cut: bool,
    #[serde(default)]
    declined: bool,
    #[serde(default)]
    agrees: Option<bool>,
    #[serde(default)]
    second: Option<RawSecond>,
}

/// What another said to the same prompt.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSecond {
    by: String,
    text: String,
}

impl RawDraft {
    fn tokens(&self) -> Result<Vec<TokenFacts>, String> {
        let count = self.logprobs.len();
        for (what, length) in [("margins", self.margins.len()), ("likeliest", self.likeliest.len())] {
            if length != 0 && length != count {
                return Err(format!("has {count} logprobs and {length} {what}; record one of each for every token"));
            }
        }
        let probability = |logprob: &f64| logprob.is_finite() && *logprob <= 1e-3;
        if !self.logprobs.iter().chain(self.likeliest.iter().flatten()).all(probability) {
            return Err(
                "has a logprob that is above 0 or no number; record natural logarithms of probabilities".to_owned()
            );
        }
        if self.agrees.is_some() && self.second.is_some() {
            return Err("has both `agrees` and `second`; `second` alone says whether it agrees".to_owned());
        }
        if !self.margins.iter().all(|margin| *margin >= 0.0) {
            return Err("has a margin below 0; record the distance of the likeliest token to the second".to_owned());
        }
        let token = |at: usize| TokenFacts {
            logprob: self.logprobs[at],
            margin: self.margins.get(at).copied(),
            entropy: self.likeliest.get(at).map(|logprobs| TokenFacts::entropy_of(logprobs.iter().copied())),
        };
        Ok((0..count).map(token).collect())
    }
}

/// Reads rows of outcomes with a `draft` each: `{text, logprobs, margins?, likeliest?, cut?, declined?, second?: {by, text}}`, or
/// `agrees?` in place of `second`. Returns them with the hash of their outcomes.
///
/// # Errors
/// A row without a sound draft, and what [`Outcomes::parse`] refuses.
pub fn parse(file: &str, text: &str) -> Result<(Vec<RecordedDraft>, String), DraftsError> {
    let mut drafts = HashMap::new();
    let mut plain = String::with_capacity(text.len());
    for (number, line) in text.lines().enumerate() {
        let wrong = |problem: String| DraftsError::Draft { file: file.to_owned(), line: number + 1, problem };
        if line.trim().is_empty() {
            continue;
        }
        let mut row: serde_json::Value =
            serde_json::from_str(line).map_err(|error| wrong(format!("is in a row that is no JSON: {error}")))?;
        let draft = row.as_object_mut().and_then(|row| row.remove("draft"));
        let draft = draft.ok_or_else(|| wrong("is missing; record what the small model wrote".to_owned()))?;
        let draft: RawDraft = serde_json::from_value(draft).map_err(|error| wrong(error.to_string()))?;
        let tokens = draft.tokens().map_err(wrong)?;
        let key =
            (row["id"].as_str().unwrap_or_default().to_owned(), row["weak_model"].as_str().unwrap_or("").to_owned());
        drafts.insert(key, (draft, tokens));
        plain.push_str(&row.to_string());
        plain.push('\n');
    }
    let outcomes = Outcomes::parse([(file, plain.as_str())])?;
    let with = |outcome: Outcome| {
        let (draft, tokens) = drafts.remove(&(outcome.id.clone(), outcome.small.clone()))?;
        let RawDraft { text, cut, declined, agrees, second, .. } = draft;
        let agreed = second.as_ref().map(|second| agree(&text, &second.text)).or(agrees);
        Some(RecordedDraft {
            outcome,
            text,
            tokens,
            cut,
            declined,
            agrees: agreed.map(|agreed| f64::from(u8::from(agreed))),
            second: second.map(|second| second.by).unwrap_or_default(),
        })
    };
    Ok((outcomes.rows.into_iter().filter_map(with).collect(), outcomes.hash))
}

impl RecordedDraft {
    /// The draft as the judge sees it.
    pub fn draft(&self, prompt_score: Option<f64>) -> Draft<'_> {
        Draft {
            prompt: &self.outcome.prompt,
            text: &self.text,
            tokens: &self.tokens,
            cut: self.cut,
            prompt_score,
            valid: None,
            agrees: self.agrees,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, draft: &str) -> String {
        format!(
            "{{\"id\":\"{id}\",\"source\":\"made\",\"prompt\":\"Say {id}\",\"weak_model\":\"nano\",\"weak_quality\":1,\"cluster\":\"{id}\",\"draft\":{draft}}}\n"
        )
    }

    #[test]
    fn rows_become_outcomes_with_drafts() {
        let good =
            row("a", "{\"text\":\"A b\",\"logprobs\":[-0.1,-0.2],\"margins\":[1,2],\"likeliest\":[[-0.1],[-0.2]]}")
                + &row("b", "{\"text\":\"\",\"logprobs\":[],\"declined\":true}");
        let (rows, hash) = parse("f", &good).unwrap();
        assert_eq!((rows.len(), hash.len(), rows[0].tokens.len()), (2, 16, 2));
        assert!(rows[1].declined && rows[0].tokens[1].margin == Some(2.0) && rows[0].tokens[0].entropy.is_some());
        assert_eq!(rows[0].draft(Some(0.5)).prompt, "Say a");
        assert_eq!((rows[0].agrees, rows[0].second.as_str()), (None, ""));
        let of = |other: &str| {
            let draft = format!(
                "{{\"text\":\"It is 7.\",\"logprobs\":[-0.1],\"second\":{{\"by\":\"sample\",\"text\":{other:?}}}}}"
            );
            parse("f", &row("a", &draft)).unwrap().0.remove(0)
        };
        assert_eq!((of("7").agrees, of("8").agrees, of("7").second.as_str()), (Some(1.0), Some(0.0), "sample"));
    }

    #[test]
    fn bad_drafts_are_named() {
        let check = |draft: &str, says: &str| {
            let error =
                parse("f.jsonl", &(row("a", "{\"text\":\"\",\"logprobs\":[]}") + &row("b", draft))).unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with("f.jsonl:2: `draft`") && error.contains(says), "{error}");
        };
        check("{\"text\":\"x\",\"logprobs\":[0.5]}", "above 0");
        check("{\"text\":\"x\",\"logprobs\":[-1],\"margins\":[1,2]}", "1 logprobs and 2 margins");
        check("{\"text\":\"x\",\"logprobs\":[-1],\"margins\":[-1]}", "margin below 0");
        check("{\"text\":\"x\"}", "logprobs");
        check(
            "{\"text\":\"x\",\"logprobs\":[-1],\"agrees\":true,\"second\":{\"by\":\"b\",\"text\":\"x\"}}",
            "both `agrees`",
        );
        let error = parse("f", "{\"id\":\"a\"}\n").unwrap_err().to_string();
        assert!(error.contains("is missing"), "{error}");
    }
}

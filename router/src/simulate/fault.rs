//! What can go wrong on command: by order of arrival, for every request, or by a marker in the model's name.
//!
//! A model named `simulated-large!cut-3!token-ms-50` is `simulated-large` that waits 50 ms between tokens and breaks off
//! after three chunks: tests in other languages script faults that way, through a catalog entry.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How usage is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageForm {
    /// In a chunk of its own with empty `choices`, after the finish reason: what OpenAI does.
    #[default]
    OwnChunk,
    /// In the chunk that carries the finish reason.
    WithChoices,
    /// In every chunk, counting up; the last one is true.
    EveryChunk,
    /// Not at all.
    Missing,
}

/// One thing that goes wrong, or is merely unusual. Several can be combined.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// An error status, with `Retry-After` and an error object of this code.
    Status {
        /// The status.
        status: u16,
        /// The value of `Retry-After`, as it is.
        retry_after: Option<String>,
        /// `error.code` in the body.
        code: String,
    },
    /// Waits before the status line.
    DelayHeaders(Duration),
    /// Waits between the headers and the first chunk.
    DelayFirstByte(Duration),
    /// Waits between chunks.
    DelayTokens(Duration),
    /// Never sends a status.
    Hang,
    /// Sends so many chunks, then nothing more, with the connection open.
    HangAfter(usize),
    /// Sends so many chunks, then breaks the connection off.
    CutAfter(usize),
    /// Sends so many chunks and ends the body properly, but without finish reason and end marker.
    EndAfter(usize),
    /// Everything but `data: [DONE]`.
    NoDone,
    /// Everything but the finish reason.
    NoFinishReason,
    /// After so many chunks, an error object as an event.
    ErrorAfter(usize),
    /// After so many chunks, an event that is not JSON.
    GarbageAfter(usize),
    /// After so many chunks, an event that stops in the middle of its JSON, and the end of the body.
    HalfJsonAfter(usize),
    /// So many bytes of body without a line end.
    NoNewline(u64),
    /// An HTML page with status 200.
    HtmlPage,
    /// Claims a compressed body.
    ClaimsGzip,
    /// Bytes that are not UTF-8, in an event.
    NotUtf8,
    /// This finish reason.
    FinishReason(String),
    /// Another way to report usage.
    Usage(UsageForm),
    /// So many hidden reasoning tokens before the answer.
    Reasoning(u32),
    /// Generates more than the caller allowed.
    IgnoreMaxTokens,
}

impl Fault {
    /// Reads a marker such as `status-503`, `retry-after-2`, `cut-3`, `token-ms-50`; `None` if there is no such marker.
    fn parse(marker: &str) -> Option<Self> {
        let (word, number) = match marker.rsplit_once('-') {
            Some((word, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => (word, digits.parse().ok()?),
            _ => (marker, 0_u32),
        };
        let (millis, chunks) = (Duration::from_millis(u64::from(number)), usize::try_from(number).ok()?);
        Some(match word {
            "status" => Self::status(u16::try_from(number).ok()?),
            "retry-after" => Self::Status {
                status: 429,
                retry_after: Some(number.to_string()),
                code: "rate_limit_exceeded".to_owned(),
            },
            "headers-ms" => Self::DelayHeaders(millis),
            "first-ms" => Self::DelayFirstByte(millis),
            "token-ms" => Self::DelayTokens(millis),
            "hang" if marker == "hang" => Self::Hang,
            "hang" => Self::HangAfter(chunks),
            "cut" => Self::CutAfter(chunks),
            "end" => Self::EndAfter(chunks),
            "no-done" => Self::NoDone,
            "error" => Self::ErrorAfter(chunks),
            "garbage" => Self::GarbageAfter(chunks),
            "half-json" => Self::HalfJsonAfter(chunks),
            "no-newline-mb" => Self::NoNewline(u64::from(number) << 20),
            "html" => Self::HtmlPage,
            "no-usage" => Self::Usage(UsageForm::Missing),
            "usage-with-choices" => Self::Usage(UsageForm::WithChoices),
            "usage-every-chunk" => Self::Usage(UsageForm::EveryChunk),
            "reasoning" => Self::Reasoning(number),
            _ => return None,
        })
    }

    /// An error status without more ado.
    pub fn status(status: u16) -> Self {
        Self::Status { status, retry_after: None, code: "simulated".to_owned() }
    }
}

/// Which faults the next requests meet.
#[derive(Default)]
pub(super) struct Faults(Mutex<Scripts>);

#[derive(Default)]
struct Scripts {
    next: VecDeque<Vec<Fault>>,
    always: Vec<Fault>,
}

impl Faults {
    pub(super) fn script(&self, faults: Vec<Fault>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next.push_back(faults);
    }

    pub(super) fn always(&self, faults: Vec<Fault>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).always = faults;
    }

    /// The faults of the request that arrives now: of the markers in its model's name or, as `{{sim:cut-3}}`, in its last
    /// message, else scripted, else the standing ones. A marker that can't be read is given back as an error.
    pub(super) fn take(&self, model: &str, question: &str) -> Result<Vec<Fault>, String> {
        let asked: Vec<&str> = question
            .split("{{sim:")
            .skip(1)
            .filter_map(|rest| rest.split_once("}}"))
            .map(|(marker, _)| marker)
            .collect();
        if !asked.is_empty() {
            let parse = |marker: &str| Fault::parse(marker).ok_or_else(|| marker.to_owned());
            return asked.into_iter().map(parse).collect();
        }
        let mut markers = model.split('!').skip(1).peekable();
        if markers.peek().is_some() {
            return markers.map(|marker| Fault::parse(marker).ok_or_else(|| marker.to_owned())).collect();
        }
        let mut scripts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(scripts.next.pop_front().unwrap_or_else(|| scripts.always.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_read() {
        let check = |marker: &str, expected: Option<Fault>| assert_eq!(Fault::parse(marker), expected, "{marker}");
        check("status-503", Some(Fault::status(503)));
        check("cut-3", Some(Fault::CutAfter(3)));
        check("hang", Some(Fault::Hang));
        check("hang-0", Some(Fault::HangAfter(0)));
        check("token-ms-50", Some(Fault::DelayTokens(Duration::from_millis(50))));
        check("no-newline-mb-100", Some(Fault::NoNewline(100 << 20)));
        check("no-done", Some(Fault::NoDone));
        check("status-99999", None);
        check("nonsense", None);
    }

    #[test]
    fn scripts_are_taken_in_order_and_then_the_standing_faults_hold() {
        let faults = Faults::default();
        faults.script(vec![Fault::Hang]);
        faults.always(vec![Fault::NoDone]);
        assert_eq!(faults.take("m!html", ""), Ok(vec![Fault::HtmlPage]));
        assert_eq!(faults.take("m", "be {{sim:cut-2}}{{sim:no-done}}"), Ok(vec![Fault::CutAfter(2), Fault::NoDone]));
        assert_eq!(faults.take("m!htm", ""), Err("htm".to_owned()));
        assert_eq!(faults.take("m", ""), Ok(vec![Fault::Hang]));
        assert_eq!(faults.take("m", ""), Ok(vec![Fault::NoDone]));
    }
}

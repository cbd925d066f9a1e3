//! Which text may be passed on: not before it is sure that an answer is no decline, not while it may be the beginning of a
//! stop text, and never a stop text itself.

use super::request::{Event, FinishReason, TokenDetail};
use super::sample::Choice;
use crate::tokenizer::TextStream;

/// Holds back tokens of one answer.
#[derive(Debug)]
pub(super) struct Hold {
    stream: TextStream,
    stops: Vec<String>,
    /// Text that may be the beginning of a stop text.
    pending: String,
    decline: Option<Decline>,
    /// Tokens that wait for the decline to be ruled out.
    held: Vec<Event>,
}

/// An answer that may yet be the decline text.
#[derive(Debug)]
struct Decline {
    text: String,
    so_far: String,
    tokens_left: usize,
}

/// What became of a token.
#[derive(Debug, PartialEq)]
pub(super) struct Released {
    /// Tokens that may be passed on now.
    pub events: Vec<Event>,
    /// Whether the answer is over by its text.
    pub over: Option<FinishReason>,
}

impl Hold {
    /// `decline` is the decline text and how many tokens may be held for it.
    pub fn new(stops: Vec<String>, decline: Option<(String, usize)>) -> Self {
        let decline = decline
            .filter(|(text, tokens)| !text.is_empty() && *tokens > 0)
            .map(|(text, tokens_left)| Decline { text, so_far: String::new(), tokens_left });
        Self { stream: TextStream::default(), stops, pending: String::new(), decline, held: Vec::new() }
    }

    /// Takes a token and its bytes; `last` if no more come.
    pub fn push(&mut self, choice: Choice, detail: Option<Box<TokenDetail>>, bytes: &[u8], last: bool) -> Released {
        let mut text = self.stream.push(bytes);
        if last {
            text.push_str(&self.stream.finish());
        }
        let decided = self.watch_decline(&text);
        if decided == Some(true) {
            self.held.clear();
            return Released { events: Vec::new(), over: Some(FinishReason::Declined) };
        }
        self.pending.push_str(&text);
        let (safe, stopped) = self.safe_length();
        let safe = if last && !stopped { self.pending.len() } else { safe };
        let text = self.pending.drain(..safe).collect();
        let Choice { id, logprob, margin } = choice;
        self.held.push(Event::Token { text, id, logprob, margin, detail });
        let over = stopped.then_some(FinishReason::Stop);
        let released = decided.is_some() || over.is_some() || last;
        Released { events: if released { std::mem::take(&mut self.held) } else { Vec::new() }, over }
    }

    /// Whether the answer is a decline, as far as that is known.
    fn watch_decline(&mut self, text: &str) -> Option<bool> {
        let Some(decline) = &mut self.decline else { return Some(false) };
        decline.so_far.push_str(text);
        decline.tokens_left -= 1;
        let answer = decline.so_far.trim_start();
        let declined = answer.starts_with(&decline.text);
        if !declined && decline.text.starts_with(answer) && decline.tokens_left > 0 {
            return None;
        }
        self.decline = None;
        Some(declined)
    }

    /// How much of the pending text is certain, and whether a stop text follows it.
    fn safe_length(&self) -> (usize, bool) {
        // The stop text that ends first, so that it does not matter how the text falls into tokens.
        let found = self.stops.iter().filter_map(|stop| self.pending.find(stop).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = found.min() {
            return (at, true);
        }
        let may_begin = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.pending[*at..]));
        let from = self.pending.char_indices().map(|(at, _)| at).find(may_begin);
        (from.unwrap_or(self.pending.len()), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds tokens, and returns the text of each release, and how it ended.
    fn run(stops: &[&str], decline: Option<&str>, tokens: &[&str]) -> (Vec<String>, Option<FinishReason>) {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut hold = Hold::new(stops, decline.map(|text| (text.to_owned(), 4)));
        let mut texts = Vec::new();
        for (at, token) in tokens.iter().enumerate() {
            let choice = Choice { id: at as u32, logprob: 0.0, margin: 0.0 };
            let released = hold.push(choice, None, token.as_bytes(), at + 1 == tokens.len());
            let text = |event: &Event| match event {
                Event::Token { text, .. } => text.clone(),
                other => panic!("{other:?}"),
            };
            texts.push(released.events.iter().map(text).collect());
            if released.over.is_some() {
                return (texts, released.over);
            }
        }
        (texts, None)
    }

    #[test]
    fn stop_texts_across_tokens_are_found_and_not_shown() {
        let check = |stops: &[&str], tokens: &[&str], texts: &[&str], over: Option<FinishReason>| {
            assert_eq!(run(stops, None, tokens), (texts.iter().map(|t| (*t).to_owned()).collect(), over), "{tokens:?}");
        };
        let stop = Some(FinishReason::Stop);
        check(&[], &["a", "b"], &["a", "b"], None);
        check(&["END"], &["one E", "N", "D two"], &["one ", "", ""], stop);
        check(&["END"], &["one E", "N", "X"], &["one ", "", "ENX"], None);
        check(&["END"], &["EN", "EN", "D"], &["", "EN", ""], stop);
        check(&["\n\n"], &["a\n", "\nb"], &["a", ""], stop);
        check(&["\n\n"], &["a\n"], &["a\n"], None);
        check(&["xyz", "y"], &["wxyz"], &["wx"], stop);
        check(&["xyz", "yz"], &["wxyz"], &["w"], stop);
        check(&["é"], &["\u{e9}a"], &[""], stop);
    }

    /// What is left of `text`: all before the stop text that is complete first, of several the longest.
    fn until_stop(text: &str, stops: &[String]) -> (String, bool) {
        let ends = (0..=text.len()).filter(|end| text.is_char_boundary(*end));
        let complete =
            |end: usize| stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
        let found = ends.into_iter().find_map(|end| complete(end).map(|length| end - length));
        (text[..found.unwrap_or(text.len())].to_owned(), found.is_some())
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]
        #[test]
        fn however_the_text_falls_into_tokens_the_same_is_shown(
            text in "[ab\u{e9}\u{1f600}]{1,24}",
            stops in proptest::collection::vec("[ab\u{e9}\u{1f600}]{1,4}", 0..4),
            cuts in proptest::collection::vec(1usize..6, 120),
        ) {
            let mut hold = Hold::new(stops.clone(), None);
            let (mut shown, mut over, mut rest, mut cuts) = (String::new(), None, text.as_bytes(), cuts.into_iter());
            while !rest.is_empty() && over.is_none() {
                let (token, after) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                rest = after;
                let choice = Choice { id: 0, logprob: 0.0, margin: 0.0 };
                let released = hold.push(choice, None, token, rest.is_empty());
                over = released.over;
                for event in released.events {
                    let Event::Token { text, .. } = event else { panic!("{event:?}") };
                    proptest::prop_assert!(!text.contains('\u{fffd}'), "half a character in {}", text);
                    shown.push_str(&text);
                }
                let (left, _) = until_stop(&text, &stops);
                proptest::prop_assert!(left.starts_with(&shown), "{} was shown of {}", shown, left);
            }
            let (left, stopped) = until_stop(&text, &stops);
            proptest::prop_assert_eq!((shown, over), (left, stopped.then_some(FinishReason::Stop)));
        }
    }

    #[test]
    fn a_decline_shows_nothing_and_anything_else_shows_all() {
        let check = |tokens: &[&str], texts: &[&str], over: Option<FinishReason>| {
            let expected = (texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), over);
            assert_eq!(run(&["Q"], Some("HANDOFF"), tokens), expected, "{tokens:?}");
        };
        let declined = Some(FinishReason::Declined);
        check(&["HAND", "OFF", "x"], &["", ""], declined);
        check(&[" ", "HANDOFF."], &["", ""], declined);
        check(&["HAND", "Y", "man"], &["", "HANDY", "man"], None);
        check(&["Hello"], &["Hello"], None);
        check(&["H", "A", "N", "D", "OFF"], &["", "", "", "HAND", "OFF"], None);
        check(&["HAND", ""], &["", "HAND"], None);
        check(&[" ", "Q"], &["", " "], Some(FinishReason::Stop));
    }
}

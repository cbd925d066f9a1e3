//! One answer on its way through a grammar, and the thread that works out what may come next.

use std::sync::{Arc, mpsc as channel};
use std::thread::JoinHandle;

use llguidance::Matcher;

use crate::engine::sample::Allowed;

/// How far an answer has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is not yet what was asked for.
    Partial,
    /// It is, and may go on.
    Whole,
    /// It is, and nothing may follow.
    Complete,
}

/// Keeps one answer to its constraint.
pub struct Guide {
    state: State,
    /// The tokens of the decline text, and how many of them the answer begins with; none once it can't be a decline.
    decline: Option<(Vec<u32>, usize)>,
    /// What may come while the answer declines.
    only: Vec<u32>,
    masks: Arc<MaskThread>,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guide")
    }
}

enum State {
    /// What the grammar allows next is known.
    Ready(Box<Matcher>, Vec<u32>),
    /// It is being worked out.
    Away(channel::Receiver<Computed>),
    /// The answer can only be the decline text.
    Declining,
    /// It has ended or failed.
    Over,
}

impl Guide {
    /// A guide for an answer that begins where `matcher` stands, with a token of `allowed` or, it may be, of the decline text.
    pub(super) fn new(matcher: Matcher, allowed: Vec<u32>, decline: Vec<u32>, masks: Arc<MaskThread>) -> Self {
        let only = vec![0; allowed.len()];
        let decline = (!decline.is_empty()).then_some((decline, 0));
        Self { state: State::Ready(Box::new(matcher), allowed), decline, only, masks }
    }

    /// Which tokens may come next; waits for it to be worked out. While the answer may yet be the decline text, its next token
    /// may come where the model itself finds that likeliest: it declines if it would have declined without a form.
    ///
    /// # Errors
    /// It can't be worked out within the limits.
    pub fn allowed(&mut self) -> Result<Allowed<'_>, String> {
        if let State::Away(receiver) = &self.state {
            let computed = receiver.recv();
            self.state = State::Over;
            let (matcher, words) = computed.map_err(|_| "the thread that works out masks has ended".to_owned())?;
            self.state = State::Ready(matcher, words?);
        }
        let next = self.next_of_decline();
        match &self.state {
            State::Ready(_, words) => Ok(Allowed { words, or_likeliest: next }),
            State::Declining => {
                self.only.fill(0);
                if let Some(token) = next
                    && let Some(word) = self.only.get_mut(token as usize / 32)
                {
                    *word |= 1 << (token % 32);
                }
                Ok(Allowed { words: &self.only, or_likeliest: None })
            }
            State::Away(_) | State::Over => Err("it has ended already".to_owned()),
        }
    }

    fn next_of_decline(&self) -> Option<u32> {
        self.decline.as_ref().and_then(|(tokens, at)| tokens.get(*at).copied())
    }

    /// Takes the chosen token, which does not end the answer; `last` if no more may come. Only then are
    /// [`Progress::Partial`] and [`Progress::Whole`] told apart.
    ///
    /// # Errors
    /// It is not one of those that might come, or the limits are reached.
    pub fn advance(&mut self, token: u32, last: bool) -> Result<Progress, String> {
        let declines = self.next_of_decline() == Some(token);
        match &mut self.decline {
            Some((_, at)) if declines => *at += 1,
            decline => *decline = None,
        }
        let (mut matcher, allowed) = match std::mem::replace(&mut self.state, State::Over) {
            State::Ready(matcher, allowed) => (matcher, allowed),
            State::Declining if declines => {
                self.state = State::Declining;
                return Ok(Progress::Partial);
            }
            _ => return Err("it has ended already".to_owned()),
        };
        if allowed.get(token as usize / 32).is_none_or(|word| word & (1 << (token % 32)) == 0) && declines {
            self.state = State::Declining;
            return Ok(Progress::Partial);
        }
        matcher.consume_token(token).map_err(|error| error.to_string())?;
        if matcher.is_stopped() {
            let reason = matcher.stop_reason();
            return if reason.is_ok() { Ok(Progress::Complete) } else { Err(format!("{reason:?}")) };
        }
        if last {
            let whole = matcher.is_accepting().map_err(|error| error.to_string())?;
            return Ok(if whole { Progress::Whole } else { Progress::Partial });
        }
        self.state = State::Away(self.masks.compute(matcher, allowed));
        Ok(Progress::Partial)
    }
}

/// A grammar and what it allows next.
type Computed = (Box<Matcher>, Result<Vec<u32>, String>);

/// Work for the thread: a grammar, a buffer for its mask, and where both go.
type Order = (Box<Matcher>, Vec<u32>, channel::SyncSender<Computed>);

/// Works out masks while the model runs the step that they are for. Ends when the last guide and the worker are gone.
pub struct MaskThread {
    orders: Option<channel::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl MaskThread {
    /// Starts the thread; if there can't be one, callers do its work.
    pub(super) fn start() -> Self {
        let (sender, orders) = channel::channel();
        let body = move || orders.into_iter().for_each(fulfil);
        match std::thread::Builder::new().name("sluice-masks".to_owned()).spawn(body) {
            Ok(thread) => Self { orders: Some(sender), thread: Some(thread) },
            Err(error) => {
                tracing::warn!(%error, "no thread for masks; the model's own works them out");
                Self { orders: None, thread: None }
            }
        }
    }

    fn compute(&self, matcher: Box<Matcher>, buffer: Vec<u32>) -> channel::Receiver<Computed> {
        let (reply, computed) = channel::sync_channel(1);
        let order = (matcher, buffer, reply);
        match &self.orders {
            Some(orders) => {
                if let Err(channel::SendError(order)) = orders.send(order) {
                    fulfil(order);
                }
            }
            None => fulfil(order),
        }
        computed
    }
}

impl Drop for MaskThread {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It has caught every panic of the library; there is nothing to learn from another.
            let _panicked = thread.join();
        }
    }
}

fn fulfil((mut matcher, mut buffer, reply): Order) {
    let mask = matcher.compute_mask_or_eos().map_err(|error| error.to_string()).map(|mask| {
        buffer.clear();
        buffer.extend_from_slice(mask.as_slice());
        buffer
    });
    // Nobody waits if the request was cancelled.
    let _cancelled = reply.send((matcher, mask));
}

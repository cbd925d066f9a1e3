//! From a conversation to the tokens of a prompt. Whoever writes in a conversation must not be able to write the model's
//! control tokens: before rendering, every name of one in a message is broken by a letter no message contains, and after
//! control tokens have been found that letter is taken out again.

use super::request::SubmitError;
use crate::template::{ChatMessage, ChatTemplate};
use crate::tokenizer::Tokenizer;

/// A model's template and vocabulary.
#[derive(Debug)]
pub(crate) struct Front {
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
}

impl Front {
    /// The prompt for a conversation. Refused if it leaves no room in `context` tokens, long texts without being read to
    /// their end.
    pub fn encode(&self, messages: &[ChatMessage], context: usize) -> Result<Vec<u32>, SubmitError> {
        let least: usize = messages.iter().map(|message| self.tokenizer.least_tokens(&message.content)).sum();
        if least >= context {
            return Err(SubmitError::PromptTooLong { tokens: least, context });
        }
        let marker = unused_letter(messages);
        let messages: Vec<ChatMessage> = messages
            .iter()
            .map(|message| ChatMessage {
                role: self.break_names(&message.role, marker),
                content: self.break_names(&message.content, marker),
            })
            .collect();
        let prompt = self.template.render(&messages).map_err(SubmitError::Template)?;
        let mut tokens = self.tokenizer.encode_marked(&prompt, Some(marker), context).map_err(SubmitError::Template)?;
        if let Some(begin) = self.tokenizer.begin()
            && tokens.first() != Some(&begin)
        {
            tokens.insert(0, begin);
        }
        if tokens.len() >= context {
            return Err(SubmitError::PromptTooLong { tokens: tokens.len(), context });
        }
        Ok(tokens)
    }

    fn break_names(&self, text: &str, marker: char) -> String {
        let mut broken = String::with_capacity(text.len());
        for (at, letter) in text.char_indices() {
            broken.push(letter);
            if self.tokenizer.control_at(&text[at..]) {
                broken.push(marker);
            }
        }
        broken
    }
}

/// A letter of a private-use area that is in no message.
fn unused_letter(messages: &[ChatMessage]) -> char {
    let used =
        |letter: char| messages.iter().any(|message| message.content.contains(letter) || message.role.contains(letter));
    ('\u{e000}'..='\u{f8ff}').chain('\u{f0000}'..='\u{ffffd}').find(|letter| !used(*letter)).unwrap_or('\u{10fffd}')
}

//! Chats to tokens, with each beginning of a chat rendered once.

use std::rc::Rc;

use firn_llm::tokenizer::{Message, Rendered, Tokenizer, TokenizerError};

use crate::encode::{Question, Tokens};

/// Chats of one row, which share their turns but for the last.
pub(crate) struct Chats<'a> {
    tokenizer: &'a Tokenizer,
    /// Beginnings by their number of turns, and whether they ask for an answer.
    begun: Vec<(usize, bool, Rc<Rendered>)>,
}

impl<'a> Chats<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, begun: Vec::new() }
    }

    /// The tokens of a beginning that all chats of the row share.
    pub(crate) fn begin(&mut self, turns: &[Message], ask: bool) -> Result<Rc<Rendered>, TokenizerError> {
        let known = self.begun.iter().find(|(count, asks, _)| (*count, *asks) == (turns.len(), ask));
        if let Some((_, _, rendered)) = known {
            return Ok(Rc::clone(rendered));
        }
        let rendered = Rc::new(self.tokenizer.render(turns, ask)?);
        self.begun.push((turns.len(), ask, Rc::clone(&rendered)));
        Ok(rendered)
    }

    /// A chat with a mask over its assistant's turns.
    pub(crate) fn tokens(&mut self, messages: &[Message]) -> Result<Tokens, TokenizerError> {
        let whole = self.tokenizer.render(messages, false)?;
        if whole.assistant_mask.contains(&1) {
            return Ok(Tokens { ids: whole.ids, mask: whole.assistant_mask });
        }
        // No `{% generation %}` in the template: a turn is what the chat up to it has more than the chat that asks for it.
        let mut mask = vec![0; whole.ids.len()];
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            let start = common_prefix(&whole.ids, &self.begin(&messages[..index], true)?.ids);
            let end = if index + 1 == messages.len() {
                whole.ids.len()
            } else {
                common_prefix(&whole.ids, &self.begin(&messages[..=index], false)?.ids)
            };
            mask[start.min(end)..end].fill(1);
        }
        Ok(Tokens { ids: whole.ids, mask })
    }

    /// The chat up to its last answer.
    pub(crate) fn question(&mut self, messages: &[Message]) -> Result<Option<Question>, TokenizerError> {
        let Some(last) = messages.iter().rposition(|message| message.role == "assistant") else { return Ok(None) };
        let prompt = messages[..last].to_vec();
        let prompt_ids = self.begin(&prompt, true)?.ids.clone();
        Ok(Some(Question { messages: prompt, prompt_ids, completion: messages[last].content.clone() }))
    }
}

pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

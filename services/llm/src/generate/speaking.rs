//! The part of a step that a GPU has recorded: sequences that say one token more.

use super::sequence::Next;
use super::{Part, Sequence};
use crate::cache::KvCache;
use crate::model::{Decoder, ModelError, Speaking};

/// Advances the parts that say one token more, where the device has recorded steps; gives what comes next in those.
pub(super) fn speak(
    model: &Decoder,
    cache: &mut KvCache,
    parts: &mut [Part<'_>],
) -> Result<Vec<Option<Next>>, ModelError> {
    let mut next: Vec<Option<Next>> = parts.iter().map(|_| None).collect();
    let speaking: Vec<usize> = (0..parts.len()).filter(|at| speaks(&parts[*at])).collect();
    let mut rows = Vec::with_capacity(speaking.len());
    for &at in &speaking {
        let Sequence { table, ids, .. } = &mut *parts[at].sequence;
        model.check(&ids[table.len()..], table.len())?;
        cache.require(table, 1)?;
    }
    if cache.begins_ahead(speaking.len()) {
        speaking.iter().for_each(|at| cache.pages.extend_ahead(&mut parts[*at].sequence.table));
    }
    for &at in &speaking {
        let Part { sequence, adapter, .. } = &parts[at];
        let id = sequence.ids.last().copied().unwrap_or_default();
        rows.push(Speaking { id, table: &sequence.table, adapter: *adapter, plain: sequence.wants_no_logits() });
    }
    let spoken = if rows.is_empty() { None } else { cache.store.speak(model, &rows) };
    for (at, spoken) in speaking.into_iter().zip(spoken.into_iter().flatten()) {
        let Sequence { table, ids, .. } = &mut *parts[at].sequence;
        let from = table.len();
        cache.pages.advance(table, &ids[from..]);
        next[at] = Some(spoken);
    }
    Ok(next)
}

/// It has read all but its last token, and that is one of its own: prompts are read by another way, which rounds otherwise.
fn speaks(part: &Part<'_>) -> bool {
    part.tokens > 0 && part.sequence.unread() == 1 && part.sequence.chooser.has_answered()
}

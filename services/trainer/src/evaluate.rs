//! A model on the held-out rows: its loss, and how much of each row its greedy answers hold.

use std::sync::atomic::{AtomicU64, Ordering};

use firn_llm::{
    generate::answer_greedily,
    model::{Adapter, Decoder, ModelError},
    tokenizer::{Tokenizer, TokenizerError},
    train::{PairLogs, Preference, Tuner, compare, held_out_loss},
};

use crate::{
    dataset::{DatasetError, HeldOut, HeldOutRow, Rows},
    record::{Evaluation, Measured},
    spec::Spec,
};

/// Blocks and answers between two looks at whether the job should end.
const BLOCKS_AT_ONCE: usize = 16;
const ANSWERS_AT_ONCE: usize = 50;

/// Why there is no evaluation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EvaluateError {
    #[error("the job is to end")]
    Stopped,
    #[error("the loss of the {name} on the held-out rows is {loss}: its weights are broken")]
    NotFinite { name: &'static str, loss: f64 },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Rows(#[from] DatasetError),
}

/// A decoder, with or without an adapter.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) decoder: Decoder,
    pub(crate) adapter: Option<Adapter>,
}

/// Who is evaluated.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    /// `base` or `tuned model`, for progress.
    pub(crate) name: &'static str,
    pub(crate) model: &'a Model,
    pub(crate) tokenizer: &'a Tokenizer,
}

/// Tells what is counted, how many are done, and of how many.
pub(crate) type Tell<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// Measures a model; `None` without held-out rows. Blocks. `stop` is asked now and then.
pub(crate) fn evaluate(
    subject: &Subject<'_>,
    held_out: &HeldOut,
    spec: &Spec,
    tell: Tell<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Evaluation>, EvaluateError> {
    if held_out.documents.len() == 0 {
        return Ok(None);
    }
    let mut evaluation = Evaluation::default();
    let rows = &held_out.documents;
    if rows.are_pairs() {
        let logs = compared(subject, rows, stop)?;
        let preferred = logs.iter().filter(|pair| pair.chosen > pair.rejected).count();
        // A pair that lost an answer to max_tokens is not measured.
        evaluation.preference_accuracy = (!logs.is_empty()).then(|| preferred as f64 / logs.len() as f64);
        if spec.preference() == Some(Preference::Reward) {
            evaluation.loss = Preference::mean_reward_loss(&logs);
        }
    }
    // A reward model says nothing of tokens.
    if spec.preference() != Some(Preference::Reward) {
        likelihood(subject, rows, spec, tell, stop, &mut evaluation)?;
    }
    if !evaluation.loss.is_finite() {
        return Err(EvaluateError::NotFinite { name: subject.name, loss: evaluation.loss });
    }
    evaluation.rows = held_out.documents.len() as u64;
    let asked = &held_out.rows;
    let Some(first) = asked.first() else { return Ok(Some(evaluation)) };
    let answers = answers(subject, asked, spec, tell, stop)?;
    evaluation.field_recall = field_recall(asked, &answers);
    let prompt = first.messages.iter().rev().find(|message| message.role == "user");
    evaluation.sample_prompt = prompt.map(|message| message.content.clone()).unwrap_or_default();
    evaluation.sample_answer = answers.into_iter().next().unwrap_or_default();
    Ok(Some(evaluation))
}

/// Measures a model in training by its own objective; `None` without held-out rows. Blocks. `stop` is asked now and then.
pub(crate) fn gauge(
    tuner: &Tuner,
    held_out: &HeldOut,
    spec: &Spec,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Measured>, EvaluateError> {
    let (mut loss, mut correct, mut count) = (0.0, 0, 0);
    let rows = &held_out.documents;
    for blocks in measured_blocks(rows, spec).chunks(BLOCKS_AT_ONCE) {
        if stop() {
            return Err(EvaluateError::Stopped);
        }
        let blocks = blocks.iter().map(|block| rows.block(block)).collect::<Result<Vec<_>, _>>()?;
        let (mean, good, all) = match spec.preference() {
            None => {
                let part = held_out_loss(tuner.decoder(), tuner.adapter(), &blocks, &|| ())?;
                (part.loss, part.correct, part.tokens)
            }
            Some(objective) => {
                let part = tuner.held_out_pairs(&blocks, objective)?;
                (part.loss, part.preferred, part.pairs)
            }
        };
        loss += mean * all as f64;
        correct += good;
        count += all;
    }
    if count == 0 {
        return Ok(None);
    }
    let (loss, accuracy) = (loss / count as f64, correct as f64 / count as f64);
    if !loss.is_finite() {
        return Err(EvaluateError::NotFinite { name: "model in training", loss });
    }
    Ok(Some(Measured { loss, accuracy, best: false }))
}

/// Rows of each block that is measured; a pair a block.
fn measured_blocks(rows: &Rows, spec: &Spec) -> Vec<Vec<u32>> {
    let order: Vec<u32> = (0..).take(rows.len()).collect();
    let room = rows.longest().max(spec.hyperparameters.block_size as usize);
    rows.pack(&order, if rows.are_pairs() { 1 } else { room })
}

/// Mean negative log-likelihood of the documents' loss tokens, and the share of them that a greedy answer would hold.
fn likelihood(
    subject: &Subject<'_>,
    rows: &Rows,
    spec: &Spec,
    tell: Tell<'_>,
    stop: &dyn Fn() -> bool,
    evaluation: &mut Evaluation,
) -> Result<(), EvaluateError> {
    let blocks = measured_blocks(rows, spec);
    let what = format!("held-out blocks measured with the {}", subject.name);
    let done = counter(&what, blocks.len(), tell);
    let (mut sum, mut tokens, mut correct) = (0.0, 0, 0);
    for blocks in blocks.chunks(BLOCKS_AT_ONCE) {
        if stop() {
            return Err(EvaluateError::Stopped);
        }
        let blocks = blocks.iter().map(|block| rows.chosen_block(block)).collect::<Result<Vec<_>, _>>()?;
        let part = held_out_loss(&subject.model.decoder, subject.model.adapter.as_ref(), &blocks, &done)?;
        sum += part.loss * part.tokens as f64;
        tokens += part.tokens;
        correct += part.correct;
    }
    evaluation.loss = sum / tokens.max(1) as f64;
    evaluation.token_accuracy = (tokens > 0).then(|| correct as f64 / tokens as f64);
    Ok(())
}

/// What the model says of each pair.
fn compared(subject: &Subject<'_>, rows: &Rows, stop: &dyn Fn() -> bool) -> Result<Vec<PairLogs>, EvaluateError> {
    let Model { decoder, adapter } = subject.model;
    let order: Vec<u32> = (0..).take(rows.len()).collect();
    let mut logs = Vec::with_capacity(rows.len());
    // A pair a block.
    for blocks in rows.pack(&order, 1).chunks(BLOCKS_AT_ONCE) {
        if stop() {
            return Err(EvaluateError::Stopped);
        }
        let blocks = blocks.iter().map(|block| rows.block(block)).collect::<Result<Vec<_>, _>>()?;
        logs.extend(compare(decoder, adapter.as_ref(), &blocks)?);
    }
    Ok(logs)
}

fn answers(
    subject: &Subject<'_>,
    asked: &[HeldOutRow],
    spec: &Spec,
    tell: Tell<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<String>, EvaluateError> {
    let what = format!("held-out rows answered by the {}", subject.name);
    let done = counter(&what, asked.len(), tell);
    let (eos, most) = (subject.tokenizer.eos_ids(), spec.max_answer_tokens as usize);
    let mut answers = Vec::with_capacity(asked.len());
    for rows in asked.chunks(ANSWERS_AT_ONCE) {
        if stop() {
            return Err(EvaluateError::Stopped);
        }
        let prompts: Vec<Vec<u32>> = rows.iter().map(|row| row.prompt_ids.clone()).collect();
        for ids in answer_greedily(&subject.model.decoder, subject.model.adapter.as_ref(), &prompts, eos, most, &done)?
        {
            answers.push(subject.tokenizer.decode(&ids, true)?);
        }
    }
    Ok(answers)
}

/// Counts calls and tells of each.
fn counter<'a>(what: &'a str, total: usize, tell: Tell<'a>) -> impl Fn() + Sync + 'a {
    let done = AtomicU64::new(0);
    move || tell(what, done.fetch_add(1, Ordering::Relaxed) + 1, total as u64)
}

/// Share of the rows' non-empty values that stand word for word in their answers; `None` without values.
fn field_recall(rows: &[HeldOutRow], answers: &[String]) -> Option<f64> {
    let (mut found, mut values) = (0, 0);
    for (row, answer) in rows.iter().zip(answers) {
        let texts = row.fields.values().filter_map(|value| value.as_str()).map(str::trim);
        for value in texts.filter(|value| !value.is_empty()) {
            values += 1;
            found += usize::from(stands_in(value, answer));
        }
    }
    (values > 0).then(|| found as f64 / values as f64)
}

/// True if the text holds the value as whole words: `$7` does not stand in `$70`.
fn stands_in(value: &str, text: &str) -> bool {
    let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let apart = |inner: Option<char>, outer: Option<char>| !(word(inner) && word(outer));
    text.match_indices(value).any(|(at, _)| {
        apart(value.chars().next(), text[..at].chars().next_back())
            && apart(value.chars().next_back(), text[at + value.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: serde_json::Value) -> HeldOutRow {
        let serde_json::Value::Object(fields) = fields else { panic!("fields are an object") };
        HeldOutRow { messages: vec![], prompt_ids: vec![], fields }
    }

    #[test]
    fn field_recall_counts_values_word_for_word() {
        let first = row(serde_json::json!({ "NAME": "Fern & Co", "REWARD": "$5", "NOTE": "" }));
        let second = row(serde_json::json!({ "NAME": "Salt", "REWARD": "$7", "ROWS": 3 }));
        let answers = ["Fern & Co gives $5.".to_owned(), "salt gives $70.".to_owned()];
        // Two of four: the empty value and the number are none, "salt" is not "Salt", "$70" is not "$7".
        assert_eq!(field_recall(&[first, second], &answers), Some(0.5));
        assert_eq!(field_recall(&[row(serde_json::json!({}))], &answers), None);
    }

    #[test]
    fn a_counter_tells_each_call() {
        let seen = std::sync::Mutex::new(vec![]);
        let tell = |what: &str, done, total| seen.lock().unwrap().push((what.to_owned(), done, total));
        let done = counter("rows", 2, &tell);
        done();
        done();
        assert_eq!(*seen.lock().unwrap(), [("rows".to_owned(), 1, 2), ("rows".to_owned(), 2, 2)]);
    }
}

use super::{
    dice::Dice,
    record::{Field, Record, Shape},
    templates::{ANY, FILLERS, LEADS, PAIRS, PARTS, SEPARATORS, single},
    values::capital,
};

/// A record and the text that restates some of its values word for word.
pub(super) struct Retelling {
    /// The record as written, with what stands before it.
    pub(super) record: String,
    /// What stands between the two.
    pub(super) separator: &'static str,
    /// The text.
    pub(super) prose: String,
    /// The values that the text restates.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare them with the text"))]
    pub(super) restated: Vec<String>,
}

/// Longest record and text in characters: about 220 tokens.
const LONGEST: usize = 860;

/// A record of three to nine fields, retold.
pub(super) fn retelling(dice: &mut Dice) -> Retelling {
    loop {
        let fewest = if dice.chance(40) { 7 } else { 3 };
        let record = Record::new(dice, fewest, 9);
        let (prose, restated) = retell(dice, &record);
        let record = format!("{}{}", dice.pick(LEADS), record.written(dice));
        if (140..=LONGEST).contains(&(record.len() + prose.len())) {
            return Retelling { record, separator: dice.pick(SEPARATORS), prose, restated };
        }
    }
}

fn retell(dice: &mut Dice, record: &Record) -> (String, Vec<String>) {
    let mut fields: Vec<&Field> = record.fields.iter().collect();
    if !dice.chance(25) {
        dice.shuffle(&mut fields);
    }
    if dice.chance(35) {
        fields.truncate(dice.range(2, fields.len()));
    }
    let restated = fields.iter().map(|field| field.value.clone()).collect();
    let longest_chain = dice.range(1, 5);
    let mut sentences = Vec::new();
    if dice.chance(8) {
        sentences.push(dice.pick(FILLERS).to_owned());
    }
    let mut rest = fields.as_slice();
    while !rest.is_empty() {
        // A sentence inside a sentence reads badly: values with a period stand alone or last.
        let ends = rest
            .iter()
            .take(longest_chain)
            .position(|field| field.value.ends_with('.'))
            .map_or(longest_chain, |at| at + 1);
        let take = dice.range(1, ends.min(rest.len()));
        let (group, tail) = rest.split_at(take);
        sentences.push(sentence(dice, group));
        rest = tail;
    }
    if dice.chance(8) {
        sentences.push(dice.pick(FILLERS).to_owned());
    }
    let gap = if dice.chance(12) { "\n" } else { " " };
    (sentences.join(gap), restated)
}

fn sentence(dice: &mut Dice, group: &[&Field]) -> String {
    let text = match group {
        [field] => {
            let own = if field.shape == Shape::Sentence { 75 } else { 50 };
            let template = if dice.chance(own) { dice.pick(single(field.shape)) } else { dice.pick(ANY) };
            opened(template, fill(template, field, field))
        }
        [first, second] if dice.chance(70) => {
            let mut template = dice.pick(PAIRS);
            while second.value.ends_with('.') && !template.ends_with("{w}") {
                template = dice.pick(PAIRS);
            }
            opened(template, fill(template, first, second))
        }
        several => chain(dice, several),
    };
    finish(text)
}

/// `text` with a capital first letter, unless its template begins with a value: those are never changed.
fn opened(template: &str, text: String) -> String {
    if template.starts_with("{v}") || template.starts_with("{w}") { text } else { capital(&text) }
}

fn chain(dice: &mut Dice, group: &[&Field]) -> String {
    let joint = dice.pick(&[", ", ", ", "; ", " and "]);
    let opening = dice.pick(&["", "", "", "It has ", "We read ", "There is ", "Noted: ", "Take "]);
    // One shape for all parts makes a list; a mixture makes a clumsy sentence. Both are good practice.
    let same = dice.chance(35).then(|| dice.pick(PARTS));
    let templates: Vec<_> = group.iter().map(|_| same.unwrap_or_else(|| dice.pick(PARTS))).collect();
    let mut parts: Vec<_> =
        group.iter().zip(&templates).map(|(field, template)| fill(template, field, field)).collect();
    if let (true, Some(first), Some(template)) = (opening.is_empty(), parts.first_mut(), templates.first()) {
        *first = opened(template, std::mem::take(first));
    }
    let last = parts.pop().unwrap_or_default();
    let and = if dice.chance(60) { " and " } else { joint };
    if parts.is_empty() { format!("{opening}{last}") } else { format!("{opening}{}{and}{last}", parts.join(joint)) }
}

/// Puts the fields into the holes of a template. A value is never changed.
fn fill(template: &str, first: &Field, second: &Field) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        match after.get(..1) {
            Some("v") => text.push_str(&first.value),
            Some("w") => text.push_str(&second.value),
            Some("k") => text.push_str(&first.words()),
            _ => text.push_str(&second.words()),
        }
        rest = after.get(2..).unwrap_or_default();
    }
    text.push_str(rest);
    text
}

/// Ends a sentence with a period where it has no end.
pub(super) fn finish(mut text: String) -> String {
    if !text.ends_with(['.', '?', '!']) {
        text.push('.');
    }
    text
}

use std::ops::Range;

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{
    chat::chat,
    dice::Dice,
    prose::retelling,
    story::{drill, story},
};

/// One document of the pre-training text: a JSON line `{"text":…}` or `{"messages":[{"role":…,"content":…},…]}`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Document {
    /// Plain text.
    Text(String),
    /// Turns of a chat: role and content.
    Chat(Vec<(&'static str, String)>),
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Turn<'a> {
            role: &'a str,
            content: &'a str,
        }

        let mut object = serializer.serialize_map(Some(1))?;
        match self {
            Self::Text(text) => object.serialize_entry("text", text)?,
            Self::Chat(turns) => {
                let turns: Vec<_> = turns.iter().map(|(role, content)| Turn { role, content }).collect();
                object.serialize_entry("messages", &turns)?;
            }
        }
        object.end()
    }
}

/// The documents of an endless text; document `i` depends on the seed and `i` alone. Of 100, about 60 are records retold in prose,
/// 15 stories, 10 copying drills and 15 chats with short replies.
pub(crate) fn corpus(seed: u64, indices: Range<usize>) -> impl Iterator<Item = Document> {
    indices.map(move |index| document(&mut Dice::new(seed, index as u64)))
}

fn document(dice: &mut Dice) -> Document {
    match dice.range(0, 99) {
        0..=59 => {
            let retelling = retelling(dice);
            Document::Text(format!("{}{}{}", retelling.record, retelling.separator, retelling.prose))
        }
        60..=74 => Document::Text(story(dice)),
        75..=84 => Document::Text(drill(dice)),
        _ => Document::Chat(chat(dice)),
    }
}

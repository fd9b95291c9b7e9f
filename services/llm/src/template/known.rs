//! Chat templates that come with the program, for bases whose own is not wanted or not there.

use sha2::{Digest, Sha256};

use crate::tokenizer::hex;

/// ChatML, with the assistant's turns marked for the loss.
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}\
{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}\
{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Zephyr's, marked likewise.
const ZEPHYR: &str = "{% for m in messages %}{% if m['role'] not in ['system', 'user', 'assistant'] %}\
{{ raise_exception('zephyr has no turns of ' + m['role'] + ', only of system, user and assistant') }}{% endif %}\
{{ '<|' + m['role'] + '|>\\n' }}{% if m['role'] == 'assistant' %}\
{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}{% else %}\
{{ m['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

/// A chat template that needs no file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KnownTemplate {
    /// `<|im_start|>role\n…<|im_end|>\n`.
    Chatml,
    /// `<|role|>\n…</s>\n`, with the base's own token for `</s>`.
    Zephyr,
}

impl KnownTemplate {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Chatml, Self::Zephyr];

    /// What it is called by AutoTrain and here.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chatml => "chatml",
            Self::Zephyr => "zephyr",
        }
    }

    /// Finds a template by its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Finds a template by the sha256 of its text, hex: what a snapshot, a checkpoint and a version note of theirs.
    #[must_use]
    pub fn of_sha256(sha256: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.sha256() == sha256)
    }

    /// Its text: the content of `chat_template.jinja`.
    #[must_use]
    pub fn source(self) -> &'static str {
        match self {
            Self::Chatml => CHATML,
            Self::Zephyr => ZEPHYR,
        }
    }

    /// sha256 of its text, hex.
    #[must_use]
    pub fn sha256(self) -> String {
        hex(&Sha256::digest(self.source()))
    }

    /// The token that ends a turn; none where it is the base's own.
    pub(crate) fn end_of_turn(self) -> Option<&'static str> {
        match self {
            Self::Chatml => Some("<|im_end|>"),
            Self::Zephyr => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::ChatTemplate;
    use crate::tokenizer::Message;

    /// The text of a chat, and what the assistant says in it.
    fn rendered(known: KnownTemplate, turns: &[(&str, &str)], begin: bool) -> (String, Vec<String>) {
        let template = ChatTemplate::new(known.source(), "<s>".to_owned(), "</s>".to_owned()).unwrap();
        let turns: Vec<_> = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        let (text, spans) = template.render(&turns, begin).unwrap();
        let said = spans.into_iter().map(|span| text[span].to_owned()).collect();
        (text, said)
    }

    const CHAT: [(&str, &str); 5] =
        [("system", "Be brief."), ("user", " Hi\n"), ("assistant", "Hello {{ x }}"), ("user", ""), ("assistant", "é")];

    #[test]
    fn chatml_is_as_transformers_renders_it() {
        let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n\
            <|im_start|>assistant\nHello {{ x }}<|im_end|>\n<|im_start|>user\n<|im_end|>\n\
            <|im_start|>assistant\né<|im_end|>\n";
        let said = vec!["Hello {{ x }}<|im_end|>".to_owned(), "é<|im_end|>".to_owned()];
        assert_eq!(rendered(KnownTemplate::Chatml, &CHAT, false), (expected.to_owned(), said));
        let asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(rendered(KnownTemplate::Chatml, &[("user", "Hi")], true), (asked.to_owned(), vec![]));
    }

    #[test]
    fn zephyr_is_as_transformers_renders_it() {
        let expected = "<|system|>\nBe brief.</s>\n<|user|>\n Hi\n</s>\n<|assistant|>\nHello {{ x }}</s>\n\
            <|user|>\n</s>\n<|assistant|>\né</s>\n";
        let said = vec!["Hello {{ x }}</s>".to_owned(), "é</s>".to_owned()];
        assert_eq!(rendered(KnownTemplate::Zephyr, &CHAT, false), (expected.to_owned(), said));
        let asked = "<|user|>\nHi</s>\n<|assistant|>\n";
        assert_eq!(rendered(KnownTemplate::Zephyr, &[("user", "Hi")], true), (asked.to_owned(), vec![]));
        let template = ChatTemplate::new(ZEPHYR, String::new(), "</s>".to_owned()).unwrap();
        let error = template.render(&[Message::new("tool", "x")], false).unwrap_err().to_string();
        assert!(error.contains("zephyr has no turns of tool"), "{error}");
    }

    #[test]
    fn a_template_is_found_by_its_name_and_by_its_hash() {
        for known in KnownTemplate::ALL {
            assert_eq!(KnownTemplate::named(known.name()), Some(known));
            assert_eq!(KnownTemplate::of_sha256(&known.sha256()), Some(known));
        }
        assert_eq!((KnownTemplate::named("alpaca"), KnownTemplate::of_sha256("")), (None, None));
        // The bundled base's template is the same ChatML: its snapshots stay its own.
        let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/base/chat_template.jinja");
        assert_eq!(std::fs::read_to_string(bundled).unwrap(), CHATML);
    }
}

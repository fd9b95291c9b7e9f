use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainerBuilder;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use super::*;
use crate::tokenizer::cache::{LONGEST, MOST_TOKENS, MOST_WORDS};

const BASES: [&str; 6] = [
    "tests/fixtures/llama",
    "tests/fixtures/gemma3",
    "tests/fixtures/mistral",
    "tests/fixtures/qwen2",
    "tests/fixtures/qwen3",
    "services/cli/base",
];
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn json(base: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(base).join("tokenizer.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn open(json: &Value) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(serde_json::to_vec(json).unwrap()).unwrap()
}

fn pre_tokenizer(pattern: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

/// All tokenizers here, and what other families do on top of their vocabularies.
fn all() -> Vec<(String, tokenizers::Tokenizer, Words)> {
    let mut found: Vec<(String, Value)> = BASES.iter().map(|base| ((*base).to_owned(), json(base))).collect();
    for (name, pattern) in [("gpt2", GPT2), ("llama3", LLAMA3), ("qwen2", QWEN2)] {
        for base in [BASES[0], BASES[5]] {
            let mut changed = json(base);
            changed["pre_tokenizer"] = pre_tokenizer(pattern);
            changed["model"]["ignore_merges"] = json!(name == "llama3");
            changed["normalizer"] = if name == "qwen2" { json!({"type": "NFC"}) } else { Value::Null };
            changed["post_processor"] = json!({"type": "Sequence", "processors": [
                {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
                {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                 "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                 "special_tokens": {"x": {"id": "x", "ids": [1], "tokens": ["x"]}}},
            ]});
            // Tokens that overlap one another, and ordinary ones that are looked for in the normalised text.
            let first = changed["model"]["vocab"].as_object().unwrap().len() as u64 + 20;
            let tokens = changed["added_tokens"].as_array_mut().unwrap();
            for (index, (text, normalized)) in
                [("ab", false), ("abc", true), ("abcd", false), ("  ", true), ("é", false), ("<|", true)]
                    .iter()
                    .enumerate()
            {
                tokens.push(
                    json!({"id": first + index as u64, "content": text, "normalized": normalized, "special": false,
                    "single_word": false, "lstrip": false, "rstrip": false}),
                );
            }
            found.push((format!("{base} as {name}"), changed));
        }
    }
    found.extend(SPACED.map(|kind| (kind.to_owned(), spaced(kind))));
    let mut digits = json(BASES[5]);
    digits["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = json!(false);
    found.push(("digits together".to_owned(), digits));
    found
        .into_iter()
        .map(|(name, json)| {
            let tokenizer = open(&json);
            let words = Words::new(&tokenizer).unwrap_or_else(|| panic!("{name} has no quick way"));
            (name, tokenizer, words)
        })
        .collect()
}

const SPACED: [&str; 6] =
    ["llama2", "gemma", "metaspace first", "metaspace always", "metaspace never", "metaspace split"];

/// A tokenizer that writes a space as `▁`, as families do.
fn spaced(kind: &str) -> Value {
    let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
        .vocab_size(400)
        .show_progress(false)
        .initial_alphabet(['▁', 'é'].into())
        .build()
        .into();
    let mut tokenizer = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', PrependScheme::Always, true)));
    let text = "the harbour lantern's don't don't 12,345 there then naïve 日本語 ab abc abcd abcde the re ve ll <|im| s\n\n {}";
    tokenizer.train(&mut trainer, (0..40).map(|_| text)).unwrap();
    let mut json: Value = serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap();
    let mut names: Vec<String> = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")).collect();
    // Spaces together are tokens, some of which are taken before all else and some after.
    names.extend([2, 4, 8].map(|spaces| "▁".repeat(spaces)));
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    for name in names {
        vocabulary.insert(name, json!(vocabulary.len()));
    }
    let first = vocabulary.len();
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    merges.insert(merges.len() / 2, json!(["▁", "▁"]));
    merges.extend([json!(["▁▁", "▁▁"]), json!(["▁▁▁▁", "▁▁▁▁"])]);
    json["model"]["byte_fallback"] = json!(true);
    json["model"]["fuse_unk"] = json!(true);
    let added = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "ab", "abcd", "é"].iter().enumerate();
    json["added_tokens"] = added
        .map(|(index, text)| {
            json!({"id": first + index, "content": text, "normalized": false, "special": index < 4,
                "single_word": false, "lstrip": false, "rstrip": false})
        })
        .collect();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    (json["normalizer"], json["pre_tokenizer"]) = match kind {
        "llama2" => {
            (json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}), Value::Null)
        }
        "gemma" => (
            replace,
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
        ),
        "metaspace split" => (Value::Null, metaspace("first", true)),
        other => (Value::Null, metaspace(other.trim_start_matches("metaspace "), false)),
    };
    json
}

#[test]
fn a_vocabulary_that_joins_words_goes_the_librarys_way() {
    let joined = |kind: &str| {
        let mut json = spaced(kind);
        let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.insert("e▁".to_owned(), json!(vocabulary.len() + 40));
        json["model"]["merges"].as_array_mut().unwrap().insert(0, json!(["e", "▁"]));
        Words::new(&open(&json)).is_none()
    };
    assert!(joined("llama2") && joined("gemma") && joined("metaspace first"));
    assert!(!joined("metaspace split"), "there it never comes to that");
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut json = spaced("llama2");
        change(&mut json);
        Words::new(&open(&json)).is_none()
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|json| json["model"]["ignore_merges"] = json!(true)));
    assert!(refused(&|json| json["model"]["byte_fallback"] = json!(false)));
    assert!(refused(&|json| json["added_tokens"][0]["normalized"] = json!(true)));
    assert!(refused(&|json| json["normalizer"]["normalizers"][0]["prepend"] = json!("x")));
    let tokenizer = open(&spaced("llama2"));
    let words = Words::new(&tokenizer).unwrap();
    assert!(words.encode(&tokenizer, "a ▁ of its own").is_none() && words.encode(&tokenizer, "none").is_some());
}

/// Ids and offsets in characters, as the library gives them.
fn expected(tokenizer: &tokenizers::Tokenizer, text: &str) -> Vec<(u32, (usize, usize))> {
    let encoding = tokenizer.encode_char_offsets(text, false).unwrap();
    encoding.get_ids().iter().copied().zip(encoding.get_offsets().iter().copied()).collect()
}

fn check(text: &str) {
    thread_local!(static ALL: Vec<(String, tokenizers::Tokenizer, Words)> = all());
    ALL.with(|all| {
        for (name, tokenizer, words) in all {
            // Only a text that is not composed, or has a mark of its own, may be given back.
            let Some(pieces) = words.encode(tokenizer, text) else {
                let marked = matches!(words.spelling, Spelling::Spaces(_)) && text.contains('▁');
                assert!(marked || (words.composed && !text.is_ascii()), "{name} gave back {text:?}");
                continue;
            };
            let characters = |byte: u32| text[..byte as usize].chars().count();
            let found: Vec<_> =
                pieces.iter().map(|piece| (piece.id, (characters(piece.start), characters(piece.end)))).collect();
            assert_eq!(found, expected(tokenizer, text), "{name} of {text:?}");
        }
    });
}

/// What patterns and merges stumble over, and anything else.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => "[a-zA-Z]{1,12}",
        3 => " [a-z]{1,8}",
        2 => " {1,9}(the|there|harbour|don't|naïve)?",
        1 => Just("▁".to_owned()),
        2 => "[ \t\r\n]{1,6}",
        2 => "[0-9]{1,7}",
        2 => "'(s|S|t|re|RE|vE|m|ll|LL|d|ſ|x|')",
        2 => "[\u{a0}\u{2003}\u{3000}\u{85}\u{2028}\u{b}\u{c}\u{1c}\u{200b}\u{200d}]{1,3}",
        2 => "[!-/:-@\\[-`{-~]{1,5}",
        2 => "(<s>|</s>|<unk>|<\\|im_start\\|>|<\\|im_end\\|>|<\\|endoftext\\|>|<\\|eot_id\\|>|abcd|abc|ab|<\\||\\|>)",
        1 => "[éàüßñøłşžİıſK]{1,4}",
        1 => "[\u{300}-\u{36f}\u{1100}-\u{11ff}\u{ac00}-\u{d7a3}\u{3099}]{1,3}",
        1 => "[½²Ⅷ٣४၄①万億]{1,3}",
        1 => "[日本語中文漢字かなカナ한국어]{1,5}",
        1 => "[👍🏽👩‍🚀🇩🇪😀]{1,4}",
        1 => "\\PC{1,6}",
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn tokens_are_the_librarys(text in text()) {
        check(&text);
    }

    #[test]
    fn tokens_of_any_text_are_the_librarys(text in any::<String>()) {
        check(&text);
    }
}

#[test]
fn characters_are_cut_as_the_library_cuts_them() {
    let mut text = String::new();
    // All alphabets, and of the large scripts every seventh.
    let codes = (0..0x3400).chain((0x3400..=0x1_FFFF).step_by(7));
    for character in codes.filter_map(char::from_u32) {
        text.extend(['a', character, '1', character, character, 'b', ' ', character, ' ']);
        if text.len() > 4_000 {
            check(&text);
            text.clear();
        }
    }
    check(&text);
}

#[test]
fn odd_ends_are_the_librarys() {
    for text in [
        "", " ", "  ", "\n", " \n", "\n ", "'", "''", "'s", " 's", "''s", "a'", "a  ", "a \n b", "1 ", " 1", "  1",
        "é'é",
    ] {
        check(text);
    }
}

#[test]
fn long_runs_are_the_librarys() {
    for run in [" ", "\n", " \n", "a", "1", "!", "é"] {
        let run = run.repeat((LONGEST_WORD - 4) / run.len());
        check(&run);
        check(&format!("x {run} 'S{run}x"));
    }
}

#[test]
fn a_cache_that_is_full_begins_anew() {
    let tokenizer = open(&json(BASES[0]));
    let words = Words::new(&tokenizer).unwrap();
    for round in 0..70 {
        // Short and long ones.
        let word = |word: usize| format!(" {0} {0}{0}{0}", letters(round * 1_000 + word));
        let text: String = (0..1_000).map(word).collect();
        let pieces = words.encode(&tokenizer, &text).unwrap();
        if round % 10 == 9 {
            assert!(pieces.iter().map(|piece| piece.id).eq(expected(&tokenizer, &text).into_iter().map(|(id, _)| id)));
        }
    }
    let (held, tokens) = words.caches.iter().map(|cache| cache.lock().unwrap().size()).max().unwrap();
    assert!(held > 0 && held <= MOST_WORDS && tokens < MOST_TOKENS + LONGEST, "{held} words of {tokens} tokens");
}

fn letters(mut number: usize) -> String {
    let mut text = String::new();
    for _ in 0..6 {
        text.push(char::from(b'a' + (number % 26) as u8));
        number /= 26;
    }
    text
}

#[test]
fn what_is_not_known_goes_the_librarys_way() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut json = json(BASES[0]);
        change(&mut json);
        assert!(Words::new(&open(&json)).is_none());
    };
    refused(&|json| json["normalizer"] = json!({"type": "Lowercase"}));
    refused(&|json| json["pre_tokenizer"] = pre_tokenizer(r"\p{L}+|\s+"));
    refused(&|json| json["pre_tokenizer"]["add_prefix_space"] = json!(true));
    refused(&|json| json["added_tokens"][3]["lstrip"] = json!(true));
    refused(&|json| json["model"]["dropout"] = json!(0.1));
    refused(&|json| {
        json["truncation"] = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0})
    });
    refused(&|json| {
        json["post_processor"] =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
    });
    let tokenizer = open(&json(BASES[0]));
    let words = Words::new(&tokenizer).unwrap();
    assert!(words.encode(&tokenizer, &" ".repeat(LONGEST_WORD + 2)).is_none());
}

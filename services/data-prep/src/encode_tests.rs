use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::*;

fn llama() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama"))
}

fn encoder(format: Format, max_tokens: usize) -> Encoder {
    Encoder::new(Tokenizer::from_dir(&llama()).unwrap(), &llama(), format, max_tokens).unwrap()
}

/// The fixture with another chat template.
fn with_template(template: &str) -> (tempfile::TempDir, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
        fs::copy(llama().join(file), dir.path().join(file)).unwrap();
    }
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    (dir, tokenizer)
}

fn row(value: Value) -> Row {
    value.as_object().unwrap().clone()
}

fn prompt_format(system: Option<&str>) -> Format {
    Format::Prompt {
        prompt: Box::new(RowTemplate::new("prompt template", "{{ row | tojson }}").unwrap()),
        completion: Box::new(RowTemplate::new("completion template", "{{ A }} has {{ B }}.").unwrap()),
        system: system.map(str::to_owned),
    }
}

fn messages_format() -> Format {
    Format::Messages { column: "messages".to_owned() }
}

fn learnt(encoder: &Encoder, encoded: &Encoded) -> String {
    let ids: Vec<u32> =
        encoded.tokens.ids.iter().zip(&encoded.tokens.mask).filter(|(_, bit)| **bit == 1).map(|(id, _)| *id).collect();
    encoder.tokenizer.decode(&ids, false).unwrap()
}

#[test]
fn chats_match_the_reference() {
    let golden: Value = serde_json::from_slice(&fs::read(llama().join("golden.json")).unwrap()).unwrap();
    let encoder = encoder(messages_format(), 1 << 20);
    let mut checked = 0;
    for case in golden["chat"].as_array().unwrap() {
        let mask = case["assistant_mask"].as_array().unwrap();
        if case["add_generation_prompt"] == json!(true) || !mask.contains(&json!(1)) {
            continue;
        }
        for messages in [case["messages"].clone(), Value::from(case["messages"].to_string())] {
            let encoded = encoder.encode(&row(json!({"messages": messages})), false).unwrap();
            assert_eq!(json!(encoded.tokens.ids), case["ids"]);
            assert_eq!(&json!(encoded.tokens.mask), &case["assistant_mask"]);
        }
        checked += 1;
    }
    assert!(checked > 0);
}

#[test]
fn loss_is_on_the_completion_alone() {
    let encoder = encoder(prompt_format(Some("Be brief.")), 1024);
    let encoded = encoder.encode(&row(json!({"A": "Fern", "B": "two"})), true).unwrap();
    assert_eq!(learnt(&encoder, &encoded), "Fern has two.<|eot_id|>");
    let question = encoded.question.unwrap();
    assert_eq!(question.completion, "Fern has two.");
    assert_eq!(question.messages[0], Message::new("system", "Be brief."));
    assert_eq!(question.messages[1], Message::new("user", r#"{"A":"Fern","B":"two"}"#));
    assert_eq!(question.messages.len(), 2);
    assert_eq!(
        encoded.tokens.ids[..question.prompt_ids.len()],
        question.prompt_ids[..],
        "the row begins with its question"
    );
    assert_eq!(encoded.tokens.mask.iter().position(|bit| *bit == 1), Some(question.prompt_ids.len()));
}

#[test]
fn a_template_without_marks_gives_the_same_mask() {
    let marked = fs::read_to_string(llama().join("chat_template.jinja")).unwrap();
    let bare = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    assert_ne!(marked, bare);
    let (dir, tokenizer) = with_template(&bare);
    let unmarked = Encoder::new(tokenizer, dir.path(), messages_format(), 1024).unwrap();
    let chat = json!([
        {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"},
        {"role": "user", "content": "e"}, {"role": "assistant", "content": "f g"},
    ]);
    let row = row(json!({"messages": chat}));
    let expected = encoder(messages_format(), 1024).encode(&row, true).unwrap();
    assert_eq!(unmarked.encode(&row, true).unwrap(), expected);
    assert_eq!(learnt(&unmarked, &expected), "c d<|eot_id|>f g<|eot_id|>");
}

#[test]
fn text_begins_and_ends_once() {
    let encoder = encoder(Format::Text { column: "t".to_owned() }, 1024);
    let plain = encoder.encode(&row(json!({"t": " Salt Bay. "})), true).unwrap();
    assert_eq!(encoder.tokenizer.decode(&plain.tokens.ids, false).unwrap(), "<s> Salt Bay. </s>");
    let literal = encoder.encode(&row(json!({"t": "<s> Salt Bay. </s>"})), true).unwrap();
    assert_eq!(plain.tokens, literal.tokens);
    assert_eq!((plain.seen.len(), literal.seen.len()), (0, 2), "it is told that both were there");
    assert_eq!(plain.tokens.mask[0], 0);
    assert!(plain.tokens.mask[1..].iter().all(|bit| *bit == 1));
    assert_eq!(plain.question, None);
}

#[test]
fn long_rows_are_cut_at_the_end() {
    let whole = encoder(prompt_format(None), 1024).encode(&row(json!({"A": "Fern", "B": "two"})), true).unwrap();
    let cut = encoder(prompt_format(None), whole.tokens.ids.len() - 2)
        .encode(&row(json!({"A": "Fern", "B": "two"})), true)
        .unwrap();
    assert!(cut.truncated && !whole.truncated);
    assert_eq!(cut.tokens.ids, whole.tokens.ids[..whole.tokens.ids.len() - 2]);
    assert_eq!(cut.tokens.mask.len(), cut.tokens.ids.len());
    assert_eq!(cut.question, whole.question, "a question is never cut");
}

#[test]
fn bad_rows_are_refused_with_the_column() {
    let text = encoder(Format::Text { column: "t".to_owned() }, 1024);
    let chat = encoder(messages_format(), 1024);
    let refusal = |encoder: &Encoder, value: Value| encoder.encode(&row(value), false).unwrap_err().to_string();
    assert_eq!(refusal(&text, json!({"t": ""})), "column t is empty");
    assert_eq!(refusal(&text, json!({"t": 3})), "column t is not text");
    assert_eq!(refusal(&text, json!({"u": "x"})), "column t is missing");
    assert!(
        refusal(&chat, json!({"messages": "[{]"})).starts_with("column messages is not a list of {role, content}: ")
    );
    assert!(refusal(&chat, json!({"messages": [{"role": "user", "content": "x"}]})).contains("no assistant's turn"));
    assert!(refusal(&chat, json!({"messages": [{"role": "bot", "content": "x"}]})).contains("the role \"bot\""));
    let error = text.check_columns("a.csv", &["A".to_owned(), "B".to_owned()]).unwrap_err();
    assert_eq!(error.to_string(), "column t is not in a.csv (it has A, B)");
}

#[test]
fn fields_are_text() {
    let encoder = encoder(messages_format(), 1024);
    let fields = encoder.fields(&row(json!({"messages": [], "a": "x", "n": 1.5, "z": null})));
    assert_eq!(serde_json::to_string(&fields).unwrap(), r#"{"a":"x","n":"1.5"}"#);
}

#[test]
fn tokens_are_taken_as_they_are() {
    let encoder = encoder(Format::Tokens { pairs: false }, 4);
    let encoded = encoder.encode(&row(json!({"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]})), true);
    let encoded = encoded.unwrap();
    assert_eq!(encoded.tokens, Tokens { ids: vec![5, 6, 7, 8], mask: vec![0, 0, 1, 1] });
    assert!(encoded.truncated && encoded.rejected.is_none() && encoded.question.is_none());
    let refusal = |value: Value| encoder.encode(&row(value), false).unwrap_err().to_string();
    assert_eq!(refusal(json!({"input_ids": [1, 2], "labels": [1]})), "column labels has 1 values, but input_ids has 2");
    assert_eq!(
        refusal(json!({"input_ids": [1, 2], "labels": [1, 3]})),
        "column labels is 3 at 1: it must be the token's id, or -100"
    );
    assert_eq!(refusal(json!({"input_ids": [-1], "labels": [-1]})), "column input_ids holds -1, which is no token id");
    assert!(refusal(json!({"input_ids": "[1,", "labels": []})).contains("is not a list of token ids"));
    let error = encoder.check_columns("a.jsonl", &["input_ids".to_owned()]).unwrap_err();
    assert_eq!(error.to_string(), "column labels is not in a.jsonl (it has input_ids)");
}

#[test]
fn a_preference_is_two_answers_to_one_prompt() {
    let columns = || Format::Preference {
        prompt: "prompt".to_owned(),
        chosen: "chosen".to_owned(),
        rejected: "rejected".to_owned(),
    };
    let encoder = encoder(columns(), 1024);
    let texts = json!({"prompt": "Which city?", "chosen": "Salt Haven.", "rejected": "None."});
    let chat =
        json!({"prompt": [{"role": "user", "content": "Which city?"}], "chosen": "Salt Haven.", "rejected": "None."});
    let encoded = encoder.encode(&row(texts), true).unwrap();
    assert_eq!(encoder.encode(&row(chat), true).unwrap(), encoded);
    let rejected = encoded.rejected.clone().unwrap();
    assert_eq!(learnt(&encoder, &encoded), "Salt Haven.<|eot_id|>");
    let second = Encoded { tokens: rejected.clone(), ..Encoded::default() };
    assert_eq!(learnt(&encoder, &second), "None.<|eot_id|>");
    let question = encoded.question.unwrap();
    for ids in [&encoded.tokens.ids, &rejected.ids] {
        assert_eq!(ids[..question.prompt_ids.len()], question.prompt_ids[..]);
    }
    // An earlier turn of the assistant is no answer, and text that looks like JSON is text.
    let turns = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]);
    let longer = encoder.encode(&row(json!({"prompt": turns, "chosen": "d", "rejected": "e"})), false).unwrap();
    assert_eq!(learnt(&encoder, &longer), "d<|eot_id|>");
    let odd = json!({"prompt": "[{\"sku\": 7}] Which?", "chosen": "d", "rejected": "e"});
    assert_eq!(learnt(&encoder, &encoder.encode(&row(odd), false).unwrap()), "d<|eot_id|>");
    let pairs = json!({"prompt_ids": [3, 4], "chosen_ids": [5], "rejected_ids": [6, 7]});
    let ready = Encoder { format: Format::Tokens { pairs: true }, ..encoder }.encode(&row(pairs), false).unwrap();
    assert_eq!(ready.tokens, Tokens { ids: vec![3, 4, 5], mask: vec![0, 0, 1] });
    assert_eq!(ready.rejected, Some(Tokens { ids: vec![3, 4, 6, 7], mask: vec![0, 0, 1, 1] }));
}

#[test]
fn rows_of_openai_s_preferences_are_read_as_they_are() {
    let format = |prompt: &str, chosen: &str, rejected: &str| Format::Preference {
        prompt: prompt.to_owned(),
        chosen: chosen.to_owned(),
        rejected: rejected.to_owned(),
    };
    let own = encoder(format("prompt", "chosen", "rejected"), 1024);
    let plain = json!({"prompt": "Which city?", "chosen": "Salt Haven.", "rejected": "None."});
    let plain = own.encode(&row(plain), true).unwrap();
    let theirs = encoder(format("input", "preferred_output", "non_preferred_output"), 1024);
    let turn = |text: &str| json!([{"role": "assistant", "content": text}]);
    let input = json!({"messages": [{"role": "user", "content": "Which city?"}], "tools": []});
    let same = json!({"input": input, "preferred_output": turn("Salt Haven."), "non_preferred_output": turn("None.")});
    assert_eq!(theirs.encode(&row(same.clone()), true).unwrap(), plain);
    for (column, value, says) in [
        ("input", json!({"prompt": "x"}), "is an object without messages"),
        ("input", json!({"messages": [], "tools": [{}]}), "has tools"),
        ("preferred_output", json!([]), "a list of one turn"),
        ("preferred_output", json!([{"role": "user", "content": "x"}]), "a list of one turn"),
        ("non_preferred_output", turn(""), "a list of one turn"),
    ] {
        let mut wrong = same.clone();
        wrong[column] = value;
        let error = theirs.encode(&row(wrong), true).unwrap_err().to_string();
        assert!(error.starts_with(&format!("column {column} ")) && error.contains(says), "{error}");
    }
}

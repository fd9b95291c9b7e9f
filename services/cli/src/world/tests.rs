use std::collections::HashSet;

use super::{Document, corpus, dice::Dice, offers, prose::retelling, to_csv};

fn all_text(document: &Document) -> String {
    match document {
        Document::Text(text) => text.clone(),
        Document::Chat(turns) => turns.iter().map(|(_, content)| content.as_str()).collect::<Vec<_>>().join("\n"),
    }
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let documents: Vec<_> = corpus(7, 0..300).collect();
    assert_eq!(documents, corpus(7, 0..300).collect::<Vec<_>>());
    assert_ne!(documents, corpus(8, 0..300).collect::<Vec<_>>());
    assert_eq!(offers(7, 50), offers(7, 80)[..50]);
    assert_ne!(offers(7, 50), offers(8, 50));
}

#[test]
fn the_corpus_never_shows_the_task() {
    for document in corpus(1, 0..5_000) {
        let text = all_text(&document);
        let lower = text.to_lowercase();
        assert!(!lower.contains("is offering a"), "{text}");
        assert!(!lower.contains("describe"), "{text}");
        assert!(!(lower.contains("reward") || lower.contains("qualification")), "{text}");
    }
}

#[test]
fn documents_are_distinct() {
    let distinct: HashSet<_> = corpus(2, 0..2_000).collect();
    assert!(distinct.len() >= 1_980, "{} distinct documents of 2000", distinct.len());
}

#[test]
fn retellings_repeat_values_word_for_word() {
    for index in 0..2_000 {
        let retelling = retelling(&mut Dice::new(3, index));
        assert!(retelling.restated.len() >= 2);
        for value in &retelling.restated {
            assert!(retelling.prose.contains(value.as_str()), "{value} is not in: {}", retelling.prose);
            assert!(retelling.record.contains(value.as_str()), "{value} is not in: {}", retelling.record);
        }
    }
}

#[test]
fn chat_replies_are_short() {
    for document in corpus(4, 0..5_000) {
        if let Document::Chat(turns) = document {
            for (_, reply) in turns.iter().filter(|(role, _)| *role == "assistant") {
                assert!(reply.len() <= 45, "{reply}");
            }
        }
    }
}

#[test]
fn documents_are_neither_tiny_nor_long() {
    for document in corpus(5, 0..5_000) {
        let length = all_text(&document).len();
        assert!((20..=900).contains(&length), "{length}: {}", all_text(&document));
    }
}

#[test]
fn documents_are_json_lines() {
    for document in corpus(6, 0..200) {
        let line = serde_json::to_string(&document).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(value["text"].is_string() || value["messages"][0]["content"].is_string(), "{line}");
    }
}

#[test]
fn offers_are_complete_and_distinct() {
    let rows = offers(11, 1_000);
    for offer in &rows {
        let value = serde_json::to_value(offer).unwrap();
        let fields = value.as_object().unwrap();
        assert_eq!(fields.len(), 8);
        assert!(fields.values().all(|field| !field.as_str().unwrap().trim().is_empty()), "{offer:?}");
        let words = |text: &str| text.split_whitespace().count();
        assert!((8..=16).contains(&words(&offer.product_description)), "{offer:?}");
        assert!((6..=12).contains(&words(&offer.qualification)), "{offer:?}");
        assert!(offer.reward.starts_with('$') && offer.hyperlink.starts_with("www."), "{offer:?}");
    }
    assert!(rows.iter().collect::<HashSet<_>>().len() >= 950);
    assert!(rows.iter().map(|offer| &offer.organization_name).collect::<HashSet<_>>().len() >= 500);
}

#[test]
fn csv_quotes_what_needs_it() {
    let mut rows = offers(1, 3);
    rows[0].product_description = "Small, \"round\" and plain.".to_owned();
    let csv = to_csv(&rows);
    assert_eq!(csv.lines().count(), 4);
    assert!(csv.starts_with("ORGANIZATION_NAME,PRODUCT_NAME,"));
    assert!(csv.contains(",\"Small, \"\"round\"\" and plain.\","), "{csv}");
}

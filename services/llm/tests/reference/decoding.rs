//! The same answers through pages, reused prefixes, chunks and mixed batches as alone.

#![expect(clippy::panic, reason = "a test stops at the first thing that is not as it should be")]

use std::path::Path;

use firn_llm::cache::{KvCache, PAGE_TOKENS};
use firn_llm::generate::{Grammars, Part, Sampling, Sequence, Stepped, Token, step};
use firn_llm::model::{Adapter, Decoder};
use firn_llm::tokenizer::Tokenizer;

use crate::fixture::Reference;

/// An answer that is wished for.
struct Wish<'a> {
    prompt: Vec<u32>,
    adapter: Option<&'a Adapter>,
    sampling: Sampling,
}

/// Answers all wishes in one batch, reading prompts in chunks of `chunk` tokens, and gives the pages back.
fn answer(model: &Decoder, cache: &mut KvCache, wishes: &[Wish<'_>], chunk: usize, tokens: usize) -> Vec<Vec<Token>> {
    let mut open: Vec<Sequence> = wishes
        .iter()
        .map(|wish| {
            let sequence = Sequence::new(model, wish.prompt.clone(), wish.sampling.clone()).expect("fits");
            let mut sequence = sequence.with_logprobs(2);
            sequence.attach(cache, wish.adapter);
            sequence
        })
        .collect();
    let mut answers = vec![Vec::new(); wishes.len()];
    while answers.iter().any(|answer: &Vec<Token>| answer.len() < tokens) {
        let mut parts: Vec<Part<'_>> = open
            .iter_mut()
            .zip(wishes)
            .zip(&answers)
            .filter(|(_, answer)| answer.len() < tokens)
            .map(|((sequence, wish), _)| Part { sequence, adapter: wish.adapter, tokens: chunk })
            .collect();
        let mut stepped = step(model, cache, &mut parts).expect("step").into_iter();
        for answer in answers.iter_mut().filter(|answer| answer.len() < tokens) {
            match stepped.next().expect("a result a part") {
                Stepped::Chose(token) => answer.push(token),
                Stepped::Read => {}
                Stepped::Stuck(reason) => panic!("{reason}"),
            }
        }
    }
    open.iter_mut().for_each(|sequence| sequence.release(cache));
    answers
}

fn ids(answer: &[Token]) -> Vec<u32> {
    answer.iter().map(|token| token.id).collect()
}

#[test]
fn greedy_answers_agree_alone_and_in_a_mixed_batch_of_sixteen() {
    for reference in Reference::all() {
        let (family, model) = (reference.family, &reference.model);
        let expected = reference.ids("greedy");
        let adapters =
            ["adapter_init", "adapter_final", "adapter_dpo", "adapter_final"].map(|name| reference.adapter(name));
        let texts = reference.ids("input_ids");
        // The two prompts whose answers are known, among fourteen others of other lengths and adapters.
        let mut wishes: Vec<Wish<'_>> = (0..16)
            .map(|i| Wish {
                prompt: texts[i % 2][..3 + i].to_vec(),
                adapter: (i % 5 > 0).then(|| &adapters[i % 5 - 1]),
                sampling: Sampling::greedy(),
            })
            .collect();
        for (at, answer) in [5, 11].into_iter().zip(&expected) {
            wishes[at] = Wish { prompt: answer[..12].to_vec(), adapter: None, sampling: Sampling::greedy() };
        }
        let room = 16 * 4 * PAGE_TOKENS;
        let together = answer(model, &mut KvCache::new(model, room), &wishes, usize::MAX, 20);
        for (at, expected) in [5, 11].into_iter().zip(&expected) {
            assert_eq!(ids(&together[at]), expected[12..], "{family}, wish {at}");
        }
        // In chunks, alone, and in a cache that has seen the same before: the same tokens.
        let mut warm = KvCache::new(model, room);
        for chunk in [5, 1, usize::MAX] {
            let again = answer(model, &mut warm, &wishes, chunk, 20);
            for (again, together) in again.iter().zip(&together) {
                assert_eq!(ids(again), ids(together), "{family}, chunks of {chunk}");
            }
        }
        for (wish, together) in wishes.iter().zip(&together) {
            let alone = answer(model, &mut warm, std::slice::from_ref(wish), usize::MAX, 20);
            assert_eq!(ids(&alone[0]), ids(together), "{family}");
        }
        assert_eq!(warm.usage().used, warm.usage().idle, "{family}: pages were lost");
    }
}

#[test]
fn log_probabilities_are_those_of_the_whole_text() {
    for reference in Reference::all() {
        let model = &reference.model;
        let adapter = reference.adapter("adapter_final");
        let prompt = reference.ids("input_ids")[0][..9].to_vec();
        let sampling = Sampling { seed: 4, ..Sampling::default() };
        let wishes =
            [None, Some(&adapter)].map(|adapter| Wish { prompt: prompt.clone(), adapter, sampling: sampling.clone() });
        let answers = answer(model, &mut KvCache::new(model, 256), &wishes, 4, 24);
        for (wish, answer) in wishes.iter().zip(&answers) {
            let whole: Vec<u32> = prompt.iter().copied().chain(ids(answer)).collect();
            let scores = model.score(&whole, wish.adapter).expect("scores");
            for (token, score) in answer.iter().zip(&scores[prompt.len() - 1..]) {
                let found = token.logprob.expect("asked for");
                assert!((found - score).abs() <= 2e-4, "{}: {found} for {score}", reference.family);
                assert!(token.top.len() == 2 && token.top[0].1 >= token.top[1].1 && token.top[0].1 >= found);
            }
        }
    }
}

#[test]
fn an_answer_goes_on_where_it_was_when_its_pages_were_taken() {
    let reference = Reference::new("gemma3");
    let model = &reference.model;
    let prompt = reference.ids("input_ids")[1][..7].to_vec();
    let sampling = Sampling { seed: 11, presence_penalty: 0.5, ..Sampling::default() };
    let expected = {
        let wish = Wish { prompt: prompt.clone(), adapter: None, sampling: sampling.clone() };
        ids(&answer(model, &mut KvCache::new(model, 64), &[wish], usize::MAX, 24)[0])
    };
    let mut cache = KvCache::new(model, 64);
    let mut sequence = Sequence::new(model, prompt, sampling).expect("fits");
    sequence.attach(&mut cache, None);
    let mut found = Vec::new();
    while found.len() < 24 {
        if found.len() % 5 == 4 {
            sequence.release(&mut cache);
            sequence.attach(&mut cache, None);
        }
        let part = Part { sequence: &mut sequence, adapter: None, tokens: usize::MAX };
        let Stepped::Chose(token) = step(model, &mut cache, &mut [part]).expect("step").remove(0) else { panic!() };
        found.push(token.id);
    }
    assert_eq!(found, expected);
}

#[test]
fn a_full_cache_is_an_error_and_room_can_be_asked_for() {
    let reference = Reference::new("llama");
    let model = &reference.model;
    let mut cache = KvCache::new(model, PAGE_TOKENS);
    let mut sequence = Sequence::new(model, vec![3; 20], Sampling::greedy()).expect("fits");
    assert!(!sequence.reserve(&mut cache, 20));
    assert!(sequence.reserve(&mut cache, 16));
    let part = Part { sequence: &mut sequence, adapter: None, tokens: usize::MAX };
    let error = step(model, &mut cache, &mut [part]).expect_err("17 tokens are too many");
    assert_eq!(error.to_string(), "the cache of 16 tokens is full");
}

#[test]
fn an_answer_keeps_to_its_schema() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/base");
    let model = Decoder::load(&base, &firn_llm::device::Device::cpu()).expect("the bundled base");
    let tokenizer = Tokenizer::from_dir(&base).expect("its tokenizer");
    let grammars = Grammars::new(&tokenizer, model.config().vocab).expect("grammars");
    let schema = r#"{"type":"object","additionalProperties":false,"required":["name","price","tags"],"properties":{
        "name":{"type":"string","maxLength":12},"price":{"type":"integer","minimum":1,"maximum":99},
        "tags":{"type":"array","maxItems":2,"items":{"enum":["new","old"]}}}}"#;
    let prompt = tokenizer.encode("An offer as JSON: ", false).expect("ids");
    let mut cache = KvCache::new(&model, 512);
    for seed in 0..4 {
        let sampling = Sampling { seed, temperature: 1.5, ..Sampling::default() };
        let constraint = grammars.json_schema(schema).expect("schema");
        let mut sequence = Sequence::new(&model, prompt.clone(), sampling).expect("fits").with_constraint(constraint);
        sequence.attach(&mut cache, None);
        let mut answer = Vec::new();
        for _ in 0..120 {
            let part = Part { sequence: &mut sequence, adapter: None, tokens: usize::MAX };
            let Stepped::Chose(token) = step(&model, &mut cache, &mut [part]).expect("step").remove(0) else {
                panic!()
            };
            if !tokenizer.eos_ids().contains(&token.id) {
                answer.push(token.id);
            }
            if token.complete || tokenizer.eos_ids().contains(&token.id) {
                break;
            }
        }
        sequence.release(&mut cache);
        let text = tokenizer.decode(&answer, false).expect("text");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(value["name"].as_str().is_some_and(|name| name.chars().count() <= 12), "{text}");
        assert!(value["price"].as_u64().is_some_and(|price| (1..=99).contains(&price)), "{text}");
        let tags = value["tags"].as_array().expect("tags");
        assert!(tags.len() <= 2 && tags.iter().all(|tag| tag == "new" || tag == "old"), "{text}");
    }
    for (schema, part) in [("{", "not JSON"), (r#"{"type":"nothing"}"#, "can't be followed")] {
        let error = grammars.json_schema(schema).expect_err("no schema").to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn neighbours_chunks_and_reused_pages_do_not_change_a_bit() {
    // The family with every kind of state: two windows, two rotary tables.
    for family in ["llama", "gemma3"] {
        let reference = Reference::new(family);
        let (model, adapter) = (&reference.model, reference.adapter("adapter_final"));
        let texts = reference.ids("input_ids");
        let wish = |i: usize| Wish {
            prompt: texts[i % 2][..5 + i].to_vec(),
            adapter: i.is_multiple_of(3).then_some(&adapter),
            sampling: Sampling { seed: i as u64, temperature: 0.9, top_p: 0.95, ..Sampling::default() },
        };
        let wishes: Vec<Wish<'_>> = (0..16).map(wish).collect();
        let together = answer(model, &mut KvCache::new(model, 1_024), &wishes, usize::MAX, 25);
        let mut warm = KvCache::new(model, 1_024);
        assert_eq!(answer(model, &mut warm, &wishes, 3, 25), together, "{family}, in chunks");
        for (wish, together) in wishes.iter().zip(&together) {
            let alone = answer(model, &mut warm, std::slice::from_ref(wish), usize::MAX, 25);
            assert_eq!(&alone[0], together, "{family}: every token and every bit of its probability");
        }
    }
}

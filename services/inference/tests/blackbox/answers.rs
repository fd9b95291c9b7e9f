//! Answers of the base.

use firn_llm::tokenizer::{Message, Tokenizer};
use firn_proto::inference::v1::{ChatMessage, ChatRequest, FinishReason, ScoreRequest, score_request};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;

#[tokio::test]
async fn greedy_answers_are_those_of_the_reference() {
    let running = Running::start().await;
    for expected in golden("greedy") {
        let (prompt, answer) = expected.split_at(12);
        let sampling = Sampling { logprobs: true, ..greedy(answer.len() as u32) };
        let found = running.answer(ids_request("base", prompt.to_vec(), sampling)).await;
        assert_eq!(found.ids, answer);
        let tokenizer = Tokenizer::from_dir(&llama()).unwrap();
        assert_eq!(found.text, tokenizer.decode(answer, true).unwrap());
        assert_eq!((found.finish.prompt_tokens, found.finish.completion_tokens), (12, answer.len() as u32));
        assert_eq!(found.finish.reason(), FinishReason::Length);
        assert!(found.finish.seconds >= found.finish.first_token_seconds && found.finish.first_token_seconds > 0.0);

        let text = TokenIds { ids: expected.clone() };
        let request = ScoreRequest { model: String::new(), input: Some(score_request::Input::Ids(text)) };
        let scores = within(running.client.clone().score(request)).await.unwrap().into_inner();
        assert_eq!((scores.ids.len(), scores.logprobs.len()), (expected.len(), expected.len() - 1));
        for (generated, scored) in found.logprobs.iter().zip(&scores.logprobs[11..]) {
            assert!((generated - scored).abs() < 1e-3, "{generated} {scored}");
        }
        let sum: f64 = scores.logprobs.iter().map(|logprob| f64::from(*logprob)).sum();
        assert!((scores.sum - sum).abs() < 1e-9);
    }
    running.stop().await;
}

#[tokio::test]
async fn sixteen_at_once_answer_as_each_alone() {
    let running = Running::start().await;
    let prompts = golden("input_ids");
    let request = |index: usize| {
        let sampling = Sampling {
            temperature: Some(0.9),
            top_p: Some(0.95),
            seed: Some(index as u64),
            max_tokens: Some(10 + index as u32),
            ignore_eos: true,
            ..Default::default()
        };
        ids_request("", prompts[index % prompts.len()][..5 + index].to_vec(), sampling)
    };
    let together = futures_util::future::join_all((0..16).map(|index| running.answer(request(index)))).await;
    for (index, found) in together.into_iter().enumerate() {
        let alone = running.answer(request(index)).await;
        assert_eq!((found.ids, found.text, found.finish.seed), (alone.ids, alone.text, index as u64));
        assert_eq!(found.finish.completion_tokens, 10 + index as u32);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_drawn_seed_is_returned_and_gives_the_answer_again() {
    let running = Running::start().await;
    let sampling = Sampling { max_tokens: Some(20), ignore_eos: true, ..Default::default() };
    let first = running.answer(ids_request("", vec![1, 40], sampling.clone())).await;
    let again = Sampling { seed: Some(first.finish.seed), ..sampling };
    assert_eq!(running.answer(ids_request("", vec![1, 40], again)).await.ids, first.ids);
    running.stop().await;
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_and_is_not_part_of_it() {
    let running = Running::start().await;
    let prompt = golden("greedy")[0][..12].to_vec();
    let whole = running.answer(ids_request("", prompt.clone(), greedy(40))).await;
    let middle: String = whole.text.chars().skip(whole.text.chars().count() / 2).take(3).collect();
    let sampling = Sampling { stop: vec!["never said".to_owned(), middle.clone()], ..greedy(40) };
    let stopped = running.answer(ids_request("", prompt, sampling)).await;
    assert_eq!(stopped.text, whole.text[..whole.text.find(&middle).unwrap()]);
    assert_eq!(stopped.finish.reason(), FinishReason::Stop);
    assert_eq!(stopped.finish.completion_tokens as usize, stopped.ids.len());
    assert!(whole.ids.starts_with(&stopped.ids));
    running.stop().await;
}

#[tokio::test]
async fn a_chat_is_answered_with_the_models_own_template() {
    let running = Running::start().await;
    let turns = [("system", "Be brief."), ("user", "Say it.")];
    let messages: Vec<Message> = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
    let prompt = Tokenizer::from_dir(&llama()).unwrap().render(&messages, true).unwrap().ids;
    let expected = running.answer(ids_request("", prompt.clone(), greedy(12))).await;
    let turn =
        |(role, content): &(&str, &str)| ChatMessage { role: (*role).to_owned(), content: (*content).to_owned() };
    let request =
        ChatRequest { messages: turns.iter().map(turn).collect(), sampling: Some(greedy(12)), ..Default::default() };
    let found = rest(within(running.client.clone().chat(request)).await.unwrap().into_inner()).await;
    assert_eq!((found.ids, found.finish.prompt_tokens as usize), (expected.ids, prompt.len()));
    running.stop().await;
}

#[tokio::test]
async fn a_reader_that_leaves_frees_its_place() {
    let running = Running::start().await;
    let endless = |tokens| {
        let mut sampling = greedy(tokens);
        sampling.ignore_eos = true;
        sampling
    };
    // All sixteen places, each for far longer than the one that comes after them.
    let mut open = vec![];
    for _ in 0..16 {
        let mut pieces = running.generate(ids_request("", vec![1, 40], endless(500))).await.unwrap();
        within(pieces.message()).await.unwrap().unwrap();
        open.push(pieces);
    }
    drop(open);
    assert_eq!(running.answer(ids_request("", vec![1, 40], endless(3))).await.ids.len(), 3);
    running.stop().await;
}

#[tokio::test]
async fn wrong_requests_name_their_field() {
    let running = Running::start().await;
    let too_long = vec![1; 513];
    for (field, request) in [
        ("ids", ids_request("", too_long, greedy(1))),
        ("ids", ids_request("", vec![512], greedy(1))),
        ("ids", ids_request("", vec![], greedy(1))),
        ("input", GenerateRequest::default()),
        ("sampling.temperature", ids_request("", vec![1], Sampling { temperature: Some(-1.0), ..greedy(1) })),
    ] {
        let status = running.generate(request).await.unwrap_err();
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!((status.code(), violations[0].field.as_str()), (Code::InvalidArgument, field));
    }
    let status = running.generate(ids_request("nobody@best", vec![1], greedy(1))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "there is no model `nobody@best`; there is base"));
    running.stop().await;
}

//! Many streams at once.

use firn_proto::inference::v1::{ChatMessage, ChatRequest, GetStatsRequest};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::adapters::{expected, template};
use super::*;

/// Requests at once.
const CROWD: u32 = 10_000;
/// What they may take in memory, on both sides, in bytes.
const MOST_MEMORY: u64 = 1 << 30;

#[tokio::test]
async fn a_prompt_of_a_megabyte_is_refused_and_takes_no_room() {
    let running = Running::start().await;
    let text = "word ".repeat(200_000);
    let refused = |status: Status, field: &str| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "CONTEXT_TOO_LONG");
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, field);
    };
    let input = Some(generate_request::Input::Prompt(text.clone()));
    let request = GenerateRequest { input, ..ids_request("", vec![], greedy(8)) };
    refused(running.generate(request).await.unwrap_err(), "prompt");
    let messages = vec![ChatMessage { role: "user".to_owned(), content: text }];
    let request = ChatRequest { messages, sampling: Some(greedy(8)), ..ChatRequest::default() };
    refused(within(running.client.clone().chat(request)).await.unwrap_err(), "messages");
    let stats = within(running.client.clone().get_stats(GetStatsRequest {})).await.unwrap().into_inner();
    assert_eq!((stats.running, stats.waiting, stats.cache_pages - stats.idle_pages), (0, 0, 0));
    assert_eq!(running.answer(ids_request("", vec![20, 30], greedy(8))).await.ids.len(), 8, "others are answered");
    running.stop().await;
}

#[tokio::test]
async fn aliases_that_move_under_load_drop_nothing() {
    let running = Running::start().await;
    let first = running.register(&llama().join("adapter_final"), "best", &template()).await;
    running.until_served("offers@best", &first).await;
    let second = running.register(&llama().join("adapter_dpo"), "new", &template()).await;
    running.until_served("offers@new", &second).await;
    let prompt = golden("input_ids")[0][..8].to_vec();
    let tokens = 60;
    let answers = [expected("adapter_final", &prompt, tokens), expected("adapter_dpo", &prompt, tokens)];
    assert_ne!(answers[0], answers[1]);
    let ask = || {
        let (mut client, request) =
            (running.client.clone(), ids_request("offers@best", prompt.clone(), greedy(tokens as u32)));
        async move { within(client.generate(request)).await.unwrap().into_inner() }
    };
    let mut asking = Vec::new();
    for (number, version) in [(2, &second), (1, &first), (2, &second), (1, &first)] {
        // Some begin while the alias moves, and one surely before.
        asking.extend((0..12).map(|at| {
            let asked = ask();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5 * at)).await;
                rest(asked.await).await
            })
        }));
        asking.push(tokio::spawn(rest(ask().await)));
        running.point("best", number).await;
        running.until_served("offers@best", version).await;
    }
    let mut seen = [0, 0];
    for asked in asking {
        let answer = within(asked).await.unwrap();
        let which = usize::from(answer.finish.version.ends_with("/2"));
        assert_eq!(answer.ids, answers[which], "it ends with the version that it began with");
        assert_eq!(answer.finish.completion_tokens as usize, tokens);
        seen[which] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "the alias moved while they asked: {seen:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_crowd_is_answered_or_told_to_come_back() {
    let running = Running::start().await;
    let before = firn_kit::memory::resident().unwrap();
    let asking = (0..CROWD).map(|number| {
        let client = running.client.clone();
        tokio::spawn(async move {
            let request = ids_request("", vec![20 + number % 200, 30], greedy(8));
            match client.clone().generate(request).await {
                Ok(pieces) => Ok(rest(pieces.into_inner()).await.ids.len()),
                Err(status) => Err(status),
            }
        })
    });
    let asking: Vec<_> = asking.collect();
    let (mut answered, mut refused) = (0, 0);
    for asked in asking {
        match within(asked).await.unwrap() {
            Ok(tokens) => {
                assert_eq!(tokens, 8);
                answered += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                let details = status.get_details_retry_info().unwrap();
                assert!(details.retry_delay.unwrap() > Duration::ZERO);
                refused += 1;
            }
        }
    }
    assert_eq!(answered + refused, CROWD);
    assert!(answered >= 16 && refused > 0, "{answered} were answered, {refused} refused");
    let more = firn_kit::memory::peak().unwrap().saturating_sub(before);
    assert!(more < MOST_MEMORY, "they took {more} bytes more");
    let stats = within(running.client.clone().get_stats(GetStatsRequest {})).await.unwrap().into_inner();
    assert_eq!((stats.running, stats.waiting), (0, 0));
    assert!(stats.cache_pages <= stats.max_cache_pages && stats.cache_pages == stats.idle_pages, "{stats:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_request_waits_its_tenants_turn() {
    let running = Running::start().await;
    // Sixteen long answers fill the batch, and one tenant queues many more.
    let ask = |tenant: &str, tokens: u32| {
        let (client, tenant) = (running.client.clone(), tenant.to_owned());
        tokio::spawn(async move {
            let mut request = ids_request("", vec![20, 30], greedy(tokens));
            request.tenant = tenant;
            rest(client.clone().generate(request).await.unwrap().into_inner()).await;
            std::time::Instant::now()
        })
    };
    let greedy_tenant: Vec<_> = (0..120).map(|_| ask("greedy", 40)).collect();
    tokio::time::sleep(Duration::from_millis(30)).await;
    let modest = within(ask("modest", 40)).await.unwrap();
    let mut later = 0;
    for asked in greedy_tenant {
        later += usize::from(within(asked).await.unwrap() > modest);
    }
    assert!(later >= 40, "only {later} of the crowd before it came after it");
    running.stop().await;
}

//! Numbers for Prometheus.

use std::collections::HashSet;

use firn_gateway::Token;

use super::*;

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
}

#[tokio::test]
async fn the_engine_s_numbers_bear_the_names_that_dashboards_read() {
    let running = Running::start_with(Options { token: Some(Token::new("s3cret")), ..Options::default() }).await;
    let text = running.metrics().await;
    for line in [
        "vllm:num_requests_running{model_name=\"base\"} 2",
        "vllm:num_requests_waiting{model_name=\"base\"} 3",
        "vllm:kv_cache_usage_perc{model_name=\"base\"} 0.25",
        "vllm:prefix_cache_queries_total{model_name=\"base\"} 1000",
        "vllm:prefix_cache_hits_total{model_name=\"base\"} 400",
        "vllm:prompt_tokens_total{model_name=\"base\"} 1200",
        "vllm:generation_tokens_total{model_name=\"base\"} 345",
        "vllm:num_preemptions_total{model_name=\"base\"} 1",
        "vllm:request_success_total{model_name=\"base\",finished_reason=\"length\"} 4",
        "vllm:request_success_total{model_name=\"base\",finished_reason=\"stop\"} 5",
        "vllm:cache_config_info{model_name=\"base\",block_size=\"16\",num_gpu_blocks=\"100\"} 1",
        "firn_engine_steps_total 77",
        "firn_adapters_max 16",
        "firn_inference_up 1",
    ] {
        has(&text, line);
    }
    let adapters = "max_lora=\"16\",running_lora_adapters=\"offers@best\",waiting_lora_adapters=\"\"";
    assert!(text.contains(&format!("vllm:lora_requests_info{{{adapters}}} ")), "{text}");
    assert!(!text.contains("s3cret"));
    running.stop().await;
}

#[tokio::test]
async fn answers_are_measured_by_model() {
    let running = Running::start().await;
    for stream in [false, true] {
        let response = running.post("/v1/chat/completions", &question(json!({"stream": stream}))).await;
        text_of(response).await;
    }
    running.post("/v1/completions", &json!({"prompt": "a", "n": 3})).await;
    running.post("/v1/completions", &json!({"prompt": "a", "model": "nobody"})).await;
    running.get("/nowhere").await;
    let text = running.metrics().await;
    for line in [
        "vllm:e2e_request_latency_seconds_count{model_name=\"offers@best\"} 2",
        "vllm:e2e_request_latency_seconds_count{model_name=\"base\"} 3",
        "vllm:time_to_first_token_seconds_count{model_name=\"offers@best\"} 2",
        "vllm:inter_token_latency_seconds_count{model_name=\"offers@best\"} 2",
        "vllm:request_prompt_tokens_sum{model_name=\"offers@best\"} 6",
        "vllm:request_generation_tokens_bucket{model_name=\"base\",le=\"1.0\"} 0",
        "vllm:request_generation_tokens_bucket{model_name=\"base\",le=\"2.0\"} 3",
        "firn_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 2",
        "firn_http_requests_total{route=\"/v1/completions\",status=\"404\"} 1",
        "firn_http_requests_total{route=\"none\",status=\"404\"} 1",
    ] {
        has(&text, line);
    }
    assert!(!text.contains("nobody"), "a name that is none's is no label");
    running.stop().await;
}

#[tokio::test]
async fn every_sample_belongs_to_a_family_that_is_there_once() {
    let running = Running::start().await;
    running.post("/v1/chat/completions", &question(json!({}))).await;
    let text = running.metrics().await;
    let (mut families, mut samples, mut family) = (HashSet::new(), HashSet::new(), String::new());
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            family = kind.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "{line}");
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(sample.starts_with(&family) && samples.insert(sample), "{line}");
            value.parse::<f64>().unwrap();
        }
    }
    assert!(families.len() > 20);
    running.stop().await;
}

#[tokio::test]
async fn without_inference_the_gateway_s_own_numbers_come() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let inference_endpoint = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let running = Running::start_on(Options::default(), Some(inference_endpoint)).await;
    running.post("/v1/chat/completions", &question(json!({}))).await;
    let text = running.metrics().await;
    has(&text, "firn_inference_up 0");
    has(&text, "firn_http_requests_total{route=\"/v1/chat/completions\",status=\"503\"} 1");
    assert!(!text.contains("vllm:num_requests_running"));
    running.stop().await;
}

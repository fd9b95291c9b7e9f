//! The engine's numbers, under the names that vLLM has for them, and what vLLM has no name for.

use firn_proto::inference::v1::{ServedModel, Stats};

use super::text::Page;

/// The base and its adapters share one engine, so its numbers bear the base's name.
const MODEL: (&str, &str) = ("model_name", "base");
/// Most adapters that are named.
const MOST_NAMES: usize = 64;
/// Most reasons that are told apart.
const MOST_REASONS: usize = 16;

/// Adds them to the page.
pub(crate) fn render(stats: &Stats, models: &[ServedModel], page: &mut Page) {
    let in_use = stats.cache_pages.saturating_sub(stats.idle_pages);
    let usage = if stats.max_cache_pages == 0 { 0.0 } else { in_use as f64 / stats.max_cache_pages as f64 };
    for (name, help, value) in [
        ("vllm:num_requests_running", "Answers in the batch.", stats.running as f64),
        ("vllm:num_requests_waiting", "Requests that wait for a place.", stats.waiting as f64),
        ("vllm:kv_cache_usage_perc", "Share of the cache that answers use, 0 to 1.", usage),
    ] {
        page.family(name, "gauge", help);
        page.sample(name, &[MODEL], value);
    }
    for (name, help, value) in [
        ("vllm:prefix_cache_queries_total", "Prompt tokens looked for in the cache.", stats.prefix_queries_total),
        ("vllm:prefix_cache_hits_total", "Prompt tokens found there.", stats.prefix_hits_total),
        ("vllm:prompt_tokens_total", "Prompt tokens of begun requests.", stats.prompt_tokens_total),
        ("vllm:generation_tokens_total", "Tokens of answers.", stats.answer_tokens_total),
        ("vllm:num_preemptions_total", "Answers that gave their place up for a while.", stats.preemptions_total),
    ] {
        page.family(name, "counter", help);
        page.sample(name, &[MODEL], value as f64);
    }
    ended(stats, page);
    infos(stats, models, page);
    page.family("firn_engine_steps_total", "counter", "Steps of the engine.");
    page.sample("firn_engine_steps_total", &[], stats.steps_total as f64);
    for (name, help, value) in [
        ("firn_requests_running_max", "Most answers in the batch.", stats.max_running),
        ("firn_requests_waiting_max", "Most requests that wait.", stats.max_waiting),
        ("firn_cache_pages", "Pages of the cache that hold something.", stats.cache_pages),
        ("firn_cache_pages_idle", "Pages that are kept for reuse alone.", stats.idle_pages),
        ("firn_cache_pages_max", "Pages that there are.", stats.max_cache_pages),
        ("firn_adapters", "Adapters in memory.", stats.adapters),
        ("firn_adapters_max", "Most adapters in memory.", stats.max_adapters),
    ] {
        page.gauge(name, help, value as f64);
    }
}

fn ended(stats: &Stats, page: &mut Page) {
    const NAME: &str = "vllm:request_success_total";
    page.family(NAME, "counter", "Answers that ended, by reason.");
    let mut reasons: Vec<_> = stats.ended_total.iter().collect();
    reasons.sort_unstable();
    for (reason, count) in reasons.into_iter().take(MOST_REASONS) {
        page.sample(NAME, &[MODEL, ("finished_reason", reason)], *count as f64);
    }
}

fn infos(stats: &Stats, models: &[ServedModel], page: &mut Page) {
    let (block, blocks) = (stats.page_tokens.to_string(), stats.max_cache_pages.to_string());
    page.family("vllm:cache_config_info", "gauge", "How the cache is divided.");
    page.sample("vllm:cache_config_info", &[MODEL, ("block_size", &block), ("num_gpu_blocks", &blocks)], 1.0);
    let adapters: Vec<&str> = models
        .iter()
        .filter(|model| !model.parent.is_empty())
        .map(|model| model.id.as_str())
        .take(MOST_NAMES)
        .collect();
    let (most, names) = (stats.max_adapters.to_string(), adapters.join(","));
    let labels = [("max_lora", most.as_str()), ("running_lora_adapters", &names), ("waiting_lora_adapters", "")];
    page.family("vllm:lora_requests_info", "gauge", "Adapters that can be asked for; the value is the time.");
    page.sample("vllm:lora_requests_info", &labels, firn_kit::Clock::system().now().as_second() as f64);
}

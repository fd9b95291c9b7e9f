use proptest::prelude::*;

use super::*;

/// Computes a whole text into a table, as a prefill does.
fn fill(pages: &mut Pages, owner: u64, tokens: &[u32]) -> (PageTable, usize) {
    let mut table = PageTable::new(owner);
    pages.attach(&mut table, tokens);
    let cached = table.len();
    let needed = tokens.len().div_ceil(PAGE_TOKENS) - table.pages().len();
    assert!(pages.extend(&mut table, needed));
    pages.advance(&mut table, &tokens[cached..]);
    (table, cached)
}

fn text(length: u32, of: u32) -> Vec<u32> {
    (0..length).map(|at| at * 7 + of).collect()
}

#[test]
fn full_pages_of_a_common_beginning_are_shared_and_the_last_token_is_always_computed() {
    let mut pages = Pages::new(64);
    let common = text(40, 1);
    let (first, cached) = fill(&mut pages, 0, &common);
    assert_eq!(cached, 0);
    let longer: Vec<u32> = common.iter().copied().chain([9, 9]).collect();
    let (second, cached) = fill(&mut pages, 0, &longer);
    assert_eq!(cached, 32, "two full pages");
    assert_eq!(first.pages()[..2], second.pages()[..2]);
    assert_ne!(first.pages()[2], second.pages()[2]);
    let (_, cached) = fill(&mut pages, 0, &common[..32]);
    assert_eq!(cached, 16, "the second page would leave nothing to compute");
    let (_, cached) = fill(&mut pages, 1, &common);
    assert_eq!(cached, 0, "another adapter's state");
}

#[test]
fn pages_outlive_their_sequence_until_room_is_needed() {
    let mut pages = Pages::new(4);
    let (mut table, _) = fill(&mut pages, 0, &text(33, 1));
    pages.release(&mut table);
    assert_eq!(pages.usage(), CacheUse { limit: 4, used: 2, idle: 2 });
    let (mut again, cached) = fill(&mut pages, 0, &text(33, 1));
    assert_eq!(cached, 32);
    pages.release(&mut again);
    let (other, _) = fill(&mut pages, 0, &text(64, 2));
    assert_eq!(pages.usage(), CacheUse { limit: 4, used: 4, idle: 0 });
    let mut more = PageTable::new(0);
    assert!(!pages.extend(&mut more, 1) && more.pages().is_empty());
    assert_eq!(other.pages().len(), 4);
}

#[test]
fn a_sequence_has_room_for_a_page_of_tokens_ahead_where_there_is_one() {
    let mut pages = Pages::new(3);
    for (length, expected) in [(15, 2), (16, 3), (17, 3)] {
        let (mut table, _) = fill(&mut pages, 0, &text(length, 1));
        let next = (table.len() + 1).div_ceil(PAGE_TOKENS) - table.pages().len();
        assert!(pages.extend(&mut table, next));
        for _ in 0..2 {
            pages.extend_ahead(&mut table);
            assert_eq!(table.pages().len(), expected, "{length} tokens");
        }
        pages.release(&mut table);
    }
    let (mut table, _) = fill(&mut pages, 0, &text(40, 2));
    pages.extend_ahead(&mut table);
    assert_eq!(table.pages().len(), 3, "all are taken");
}

proptest! {
    /// Whatever comes and goes: pages add up, and a page in two tables holds the same tokens after the same pages.
    #[test]
    fn pages_are_never_lost_and_never_mean_two_things(
        steps in prop::collection::vec((0u64..2, 0usize..4, 1usize..70, any::<bool>()), 1..60)
    ) {
        let mut pages = Pages::new(24);
        let mut open: Vec<(PageTable, Vec<u32>)> = Vec::new();
        for (owner, of, length, close) in steps {
            // Texts of the same `of` share a beginning, those of others share pages by chance only.
            let tokens: Vec<u32> = (0..length as u32).map(|at| at + 1000 * of as u32 * u32::from(at > 20)).collect();
            let needed = length.div_ceil(PAGE_TOKENS);
            if close || pages.usage().available() < needed {
                if !open.is_empty() {
                    let (mut table, _) = open.remove(of % open.len());
                    pages.release(&mut table);
                }
                continue;
            }
            let (table, _) = fill(&mut pages, owner, &tokens);
            prop_assert_eq!(&table.tokens, &tokens);
            open.push((table, tokens));
            for (table, tokens) in &open {
                for (other, others) in &open {
                    for (index, page) in table.pages().iter().enumerate() {
                        if let Some(at) = other.pages().iter().position(|candidate| candidate == page) {
                            prop_assert_eq!(at, index);
                            let end = ((index + 1) * PAGE_TOKENS).min(tokens.len());
                            prop_assert_eq!(&tokens[..end], &others[..end.min(others.len())]);
                            prop_assert_eq!(table.owner, other.owner);
                        }
                    }
                }
            }
        }
        for (mut table, _) in open {
            pages.release(&mut table);
        }
        let usage = pages.usage();
        prop_assert_eq!(usage.used, usage.idle);
        prop_assert_eq!(usage.available(), 24);
        let (_, _) = fill(&mut pages, 7, &text(24 * PAGE_TOKENS as u32, 3));
        prop_assert_eq!(pages.usage().idle, 0);
    }
}

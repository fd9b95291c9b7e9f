use super::*;

const DRAWS: usize = 200;

/// Chooses from the same logits again and again.
fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
    let mut chooser = Chooser::new(sampling, &[]);
    (0..count).map(|_| chooser.choose(logits, None)).collect()
}

#[test]
fn the_seed_and_the_position_decide() {
    let logits = [0.1, 0.2, 0.3, 0.0];
    let sampling = Sampling { seed: 7, ..Sampling::default() };
    let first = draws(sampling.clone(), &logits, 64);
    assert_eq!(first, draws(sampling.clone(), &logits, 64));
    assert_ne!(first, draws(Sampling { seed: 8, ..sampling }, &logits, 64));
    assert!(first.iter().any(|id| *id != first[0]));
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [2.0f32.ln(), 0.0, 1.0f32.ln()];
    let count = |ids: &[u32], id: u32| ids.iter().filter(|drawn| **drawn == id).count() as f64 / ids.len() as f64;
    for sampling in [Sampling::default(), Sampling { top_p: 0.999_999, ..Sampling::default() }] {
        let ids = draws(sampling, &logits, 4_000);
        assert!((count(&ids, 0) - 0.5).abs() < 0.03, "{}", count(&ids, 0));
        assert!((count(&ids, 1) - 0.25).abs() < 0.03);
    }
}

#[test]
fn every_cut_takes_the_tail_away() {
    let logits = [0.0, 5.0, -1.0, 4.0];
    for sampling in [
        Sampling { top_k: 2, ..Sampling::default() },
        Sampling { top_p: 0.9, ..Sampling::default() },
        Sampling { min_p: 0.1, ..Sampling::default() },
    ] {
        let ids = draws(sampling.clone(), &logits, DRAWS);
        assert!(ids.iter().all(|id| [1, 3].contains(id)), "{sampling:?}");
        assert!(ids.contains(&1) && ids.contains(&3), "{sampling:?}");
    }
    assert!(draws(Sampling { top_k: 1, ..Sampling::default() }, &logits, DRAWS).iter().all(|id| *id == 1));
}

#[test]
fn penalties_and_biases_change_what_comes_next() {
    let logits = [1.0, 0.9, 0.8];
    let greedy = |sampling: Sampling| draws(Sampling { temperature: 0.0, ..sampling }, &logits, 4);
    assert_eq!(greedy(Sampling::default()), [0, 0, 0, 0]);
    // After one of each all are equally far down.
    assert_eq!(greedy(Sampling { presence_penalty: 1.0, ..Sampling::default() }), [0, 1, 2, 0]);
    assert_eq!(greedy(Sampling { frequency_penalty: 0.15, ..Sampling::default() }), [0, 1, 0, 2]);
    assert_eq!(greedy(Sampling { repetition_penalty: 2.0, ..Sampling::default() }), [0, 1, 2, 0]);
    assert_eq!(greedy(Sampling { bias: vec![(2, 1.0), (9, 5.0)], ..Sampling::default() }), [2, 2, 2, 2]);
    let mut chooser = Chooser::new(Sampling { repetition_penalty: 2.0, ..Sampling::greedy() }, &[0]);
    assert_eq!(chooser.choose(&logits, None), 1, "the prompt's tokens count");
    let mut chooser = Chooser::new(Sampling { presence_penalty: 2.0, ..Sampling::greedy() }, &[0]);
    assert_eq!(chooser.choose(&logits, None), 0, "for the others the answer's alone do");
}

#[test]
fn only_what_is_allowed_is_chosen() {
    let logits = [1.0, 0.9, 0.8];
    for temperature in [0.0, 1.0, 50.0] {
        let mut chooser = Chooser::new(Sampling { temperature, ..Sampling::default() }, &[]);
        assert!((0..DRAWS).all(|_| chooser.choose(&logits, Some(&|id| id == 2)) == 2));
    }
}

#[test]
fn the_most_probable_tokens_come_best_first() {
    let logits = [0.0, 2.0, 1.0, 2.0];
    let (chosen, top) = log_probabilities(&logits, 2, 3);
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
    assert!((top[2].1 - chosen).abs() < 1e-7 && chosen < 0.0);
    assert!(log_probabilities(&logits, 0, 0).1.is_empty());
    assert_eq!(log_probabilities(&logits, 0, 9).1.len(), 4);
}

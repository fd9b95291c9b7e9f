//! Curves on a terminal.

/// Columns of a curve.
const WIDTH: usize = 60;

/// A curve in characters.
pub(crate) fn chart(values: Vec<f64>, height: u32) -> String {
    // The library draws a value a column: fewer are stretched, more are thinned.
    let at = |column: usize| values[column * (values.len() - 1) / (WIDTH - 1)];
    let columns = if values.is_empty() { vec![] } else { (0..WIDTH).map(at).collect() };
    let config = rasciigraph::Config::default().with_height(height).with_offset(2);
    rasciigraph::plot(columns, config)
}

#[cfg(test)]
mod tests {
    use super::chart;

    #[test]
    fn a_curve_has_its_height() {
        let drawn = chart((0..500).map(f64::from).collect(), 6);
        assert!((6..=8).contains(&drawn.lines().count()), "{drawn}");
        assert!(chart(vec![1.0, 2.0], 6).contains('┤'));
    }
}

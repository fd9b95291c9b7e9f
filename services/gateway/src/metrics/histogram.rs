//! How often a value was how large.

use super::text::Page;

/// Counts by bounds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// Values up to each bound and above the one before it; the last are above all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// Nothing yet; `bounds` rise.
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Adds a value so many times.
    pub(crate) fn observe(&mut self, value: f64, times: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(place) {
            *count += times;
            self.sum += value * times as f64;
        }
    }

    /// Adds the samples of this one to its family.
    pub(crate) fn render(&self, name: &str, labels: &[(&str, &str)], page: &mut Page) {
        let bucket = format!("{name}_bucket");
        let mut so_far = 0;
        for (count, bound) in self.counts.iter().zip(self.bounds.iter().chain([&f64::INFINITY])) {
            so_far += count;
            let bound = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
            let labels: Vec<(&str, &str)> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            page.sample(&bucket, &labels, so_far as f64);
        }
        page.sample(&format!("{name}_sum"), labels, self.sum);
        page.sample(&format!("{name}_count"), labels, so_far as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let mut histogram = Histogram::new(&[0.5, 1.0]);
        for (value, times) in [(0.25, 2), (0.5, 1), (0.75, 1), (8.0, 1)] {
            histogram.observe(value, times);
        }
        let mut page = Page::default();
        histogram.render("h", &[("m", "x")], &mut page);
        let expected = "h_bucket{m=\"x\",le=\"0.5\"} 3\nh_bucket{m=\"x\",le=\"1.0\"} 4\nh_bucket{m=\"x\",le=\"+Inf\"} 5\n\
                        h_sum{m=\"x\"} 9.75\nh_count{m=\"x\"} 5\n";
        assert_eq!(page.into_text(), expected);
    }
}

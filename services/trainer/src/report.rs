//! What a person looks at after a run: `report.json`, its curves, and one page that holds both.

use minijinja::{AutoEscape, Environment, context, value::Serde};
use plotters::prelude::*;
use serde::Serialize;

use crate::{
    job::Job,
    record::{Evaluation, Measured, MergeProof, SnapshotRef, Step},
    spec::Spec,
};

/// Points of a curve: more say nothing more.
const CURVE_POINTS: usize = 2_000;
/// Size of a curve in pixels.
const SIZE: (u32, u32) = (760, 300);
const PAGE: &str = include_str!("report.html");

/// Why a report could not be drawn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("failed to draw the curves: {0}")]
    Drawing(String),
    #[error("failed to fill the page: {0}")]
    Page(#[from] minijinja::Error),
}

/// `report.json`.
#[derive(Serialize)]
pub(crate) struct Report<'a> {
    job: &'a str,
    spec: &'a Spec,
    snapshot: Option<SnapshotRef>,
    steps: u64,
    /// The weights are those of this step; 0: of the last one.
    best_step: u64,
    train_tokens: u64,
    train_seconds: f64,
    trained_parameters: usize,
    base_evaluation: Option<Evaluation>,
    tuned_evaluation: Option<Evaluation>,
    /// If the job asked for it.
    merge_proof: Option<MergeProof>,
    loss_curve: Vec<Point>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Point {
    step: u64,
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<Measured>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(job: &'a Job, trained_parameters: usize) -> Self {
        let record = job.record();
        Self {
            job: job.id(),
            spec: &job.spec.spec,
            snapshot: record.snapshot,
            steps: record.step,
            best_step: record.best_step,
            train_tokens: record.train_tokens,
            train_seconds: record.train_seconds,
            trained_parameters,
            base_evaluation: record.base_evaluation,
            tuned_evaluation: record.tuned_evaluation,
            merge_proof: record.merge_proof,
            loss_curve: curve(&job.steps()),
        }
    }

    /// The loss of the steps and of the held-out rows, as SVG.
    pub(crate) fn loss_svg(&self) -> Result<String, ReportError> {
        let steps = self.series(|point| Some(point.loss));
        let held_out = self.series(|point| point.held_out.map(|measured| measured.loss));
        draw("loss, nats", &[("training", steps), ("held-out rows", held_out)])
    }

    /// One page that needs nothing beside it.
    pub(crate) fn html(&self) -> Result<String, ReportError> {
        let curves = [
            self.loss_svg()?,
            draw("gradient norm before clipping", &[("", self.series(|point| Some(point.grad_norm)))])?,
            draw("learning rate", &[("", self.series(|point| Some(point.learning_rate)))])?,
        ];
        let mut pages = Environment::new();
        pages.set_auto_escape_callback(|_| AutoEscape::Html);
        pages.add_template("report", PAGE)?;
        Ok(pages.get_template("report")?.render(context! { report => Serde(self), curves })?)
    }

    fn series(&self, value: impl Fn(&Point) -> Option<f64>) -> Vec<(f64, f64)> {
        self.loss_curve.iter().filter_map(|point| Some((point.step as f64, value(point)?))).collect()
    }
}

/// At most [`CURVE_POINTS`] steps, the last one and all measured ones always.
fn curve(steps: &[Step]) -> Vec<Point> {
    let stride = steps.len().div_ceil(CURVE_POINTS).max(1);
    let kept = steps.iter().rev().enumerate().filter(|(at, step)| at % stride == 0 || step.held_out.is_some());
    let point = |(_, step): (usize, &Step)| Point {
        step: step.step,
        loss: step.loss,
        grad_norm: step.grad_norm,
        learning_rate: step.learning_rate,
        held_out: step.held_out,
    };
    let mut points: Vec<Point> = kept.map(point).collect();
    points.reverse();
    points
}

/// A chart over the steps, a line a series.
fn draw(title: &str, series: &[(&str, Vec<(f64, f64)>)]) -> Result<String, ReportError> {
    let mut svg = String::new();
    draw_into(&mut svg, title, series).map_err(|error| ReportError::Drawing(error.to_string()))?;
    Ok(svg)
}

fn draw_into(
    svg: &mut String,
    title: &str,
    series: &[(&str, Vec<(f64, f64)>)],
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || series.iter().flat_map(|(_, points)| points);
    let last = all().map(|(step, _)| *step).fold(1.0, f64::max);
    let low = all().map(|(_, value)| *value).fold(f64::INFINITY, f64::min).min(0.0);
    let high = all().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    let high = if high > low { low + (high - low) * 1.05 } else { low + 1.0 };
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, low..high)?;
    let label = |value: &f64| if high < 0.1 { format!("{value:.1e}") } else { format!("{value:.2}") };
    chart.configure_mesh().light_line_style(WHITE).x_desc("step").y_label_formatter(&label).draw()?;
    for ((name, points), colour) in series.iter().zip([RGBColor(31, 119, 180), RGBColor(214, 39, 40)]) {
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        if !name.is_empty() && !points.is_empty() {
            line.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
    }
    if series.iter().any(|(name, points)| !name.is_empty() && !points.is_empty()) {
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(WHITE).draw()?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::example_step;

    #[test]
    fn a_long_curve_is_thinned_and_keeps_its_end_and_its_measurements() {
        let step = |step: u64| example_step(step, 5_000);
        let mut steps: Vec<_> = (1..=5_000).map(step).collect();
        steps[6].held_out = Some(Measured { loss: 1.0, accuracy: 0.5, best: true });
        let points = curve(&steps);
        assert!(points.len() <= CURVE_POINTS + 1 && points.len() > CURVE_POINTS / 2);
        assert_eq!(points.last().unwrap().step, 5_000);
        assert!(points.windows(2).all(|pair| pair[0].step < pair[1].step));
        assert!(points.iter().any(|point| point.step == 7 && point.held_out.is_some()));
        assert_eq!(curve(&[step(1), step(2)]).len(), 2);
        assert!(curve(&[]).is_empty());
    }

    #[test]
    fn a_chart_has_a_line_a_series_and_its_words() {
        let lines = [("training", vec![(1.0, 3.0), (2.0, 1.0)]), ("held-out rows", vec![(2.0, 1.5)])];
        let svg = draw("loss, nats", &lines).unwrap();
        for part in ["<svg", "loss, nats", "training", "held-out rows", "polyline"] {
            assert!(svg.contains(part), "{part}");
        }
        // Nothing to draw is a chart, too: a run of no steps has a report.
        assert!(draw("loss", &[("training", vec![])]).unwrap().contains("<svg"));
    }
}

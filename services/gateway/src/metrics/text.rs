//! Prometheus' text format.

use std::fmt::Write as _;

/// Text that grows by families and their samples.
#[derive(Debug, Default)]
pub(crate) struct Page(String);

impl Page {
    /// Begins a family; its samples follow at once.
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        // Writing to a text can't fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Adds a sample.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        self.0.push_str(if labels.is_empty() { " " } else { "} " });
        let _ = match value {
            f64::INFINITY => writeln!(self.0, "+Inf"),
            f64::NEG_INFINITY => writeln!(self.0, "-Inf"),
            value => writeln!(self.0, "{value}"),
        };
    }

    /// A family of one sample without labels.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// All of it.
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_escaped() {
        let mut page = Page::default();
        page.family("a:b_total", "counter", "Back\\slash\nand line.");
        page.sample("a:b_total", &[("x", "say \"hi\"\\\n"), ("y", "")], 2.5);
        page.gauge("g", "Help.", 1e9);
        let expected = "# HELP a:b_total Back\\\\slash\\nand line.\n# TYPE a:b_total counter\n\
                        a:b_total{x=\"say \\\"hi\\\"\\\\\\n\",y=\"\"} 2.5\n\
                        # HELP g Help.\n# TYPE g gauge\ng 1000000000\n";
        assert_eq!(page.into_text(), expected);
    }

    #[test]
    fn numbers_beyond_numbers_have_names() {
        let mut page = Page::default();
        for value in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            page.sample("g", &[], value);
        }
        assert_eq!(page.into_text(), "g +Inf\ng -Inf\ng NaN\n");
    }
}

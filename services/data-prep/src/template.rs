//! Jinja templates over a row.

use std::io;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context, value::Serde};

use crate::rows::Row;

const NAME: &str = "template";
/// Instructions that one rendering may take: a loop that never ends must not hold a worker.
const FUEL: u64 = 2_000_000;
/// Bytes that one rendering may give: no row becomes that long by intent.
const LONGEST: usize = 1 << 20;

/// Why a template failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TemplateError {
    #[error("{template} is not valid Jinja: {reason}")]
    Syntax { template: &'static str, reason: String },
    #[error("{template} names column {column} that {file} lacks (it has {columns})")]
    NoColumn { template: &'static str, column: String, file: String, columns: String },
    #[error("{template} failed: {reason}")]
    Failed { template: &'static str, reason: String },
}

/// A template that sees the columns of a row by their names, and all of them as `row`.
#[derive(Debug)]
pub(crate) struct RowTemplate {
    label: &'static str,
    environment: Environment<'static>,
}

impl RowTemplate {
    /// Parses a template; `label` is what messages call it.
    pub(crate) fn new(label: &'static str, source: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        // A misspelt column must fail, not vanish.
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", compact_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::Syntax { template: label, reason: describe(&error) })?;
        Ok(Self { label, environment })
    }

    /// Refuses a template that names a column that no row has.
    pub(crate) fn check_columns(&self, file: &str, columns: &[String]) -> Result<(), TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| self.failed(&error))?;
        let mut names: Vec<String> = template.undeclared_variables(true).into_iter().collect();
        names.sort_unstable();
        let globals: Vec<&str> = self.environment.globals().map(|(name, _)| name).collect();
        for name in names {
            let mut parts = name.split('.');
            let column = match (parts.next(), parts.next()) {
                (Some("row"), Some(column)) => column,
                (Some("row"), None) => continue,
                (Some(first), _) if !globals.contains(&first) => first,
                _ => continue,
            };
            if !columns.iter().any(|known| known == column) {
                let (column, file, columns) = (column.to_owned(), file.to_owned(), columns.join(", "));
                return Err(TemplateError::NoColumn { template: self.label, column, file, columns });
            }
        }
        Ok(())
    }

    /// Renders the template over one row.
    pub(crate) fn render(&self, row: &Row) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| self.failed(&error))?;
        let all = Value::from(Serde(row));
        let mut out = Bounded(Vec::new());
        let values = context! { row => all.clone(), ..all };
        template.render_captured_to(values, &mut out).map_err(|error| self.failed(&error))?;
        String::from_utf8(out.0)
            .map_err(|error| TemplateError::Failed { template: self.label, reason: error.to_string() })
    }

    fn failed(&self, error: &Error) -> TemplateError {
        let reason = match error.kind() {
            ErrorKind::OutOfFuel => "it takes too many steps".to_owned(),
            ErrorKind::WriteFailure => format!("it gives more than {LONGEST} bytes"),
            _ => describe(error),
        };
        TemplateError::Failed { template: self.label, reason }
    }
}

/// JSON without spaces in column order, as Snowflake prints `OBJECT_CONSTRUCT(*)`.
fn compact_json(value: &Value) -> Result<Value, Error> {
    serde_json::to_string(value)
        .map(Value::from_safe_string)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    error.line().map_or_else(|| what.clone(), |line| format!("{what} (line {line})"))
}

/// Takes [`LONGEST`] bytes and no more.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row() -> Row {
        json!({"Z": "Fish & \"Co's\" <b>", "A": 7, "E": ""}).as_object().unwrap().clone()
    }

    fn template(source: &str) -> RowTemplate {
        RowTemplate::new("prompt template", source).unwrap()
    }

    #[test]
    fn row_is_compact_json_in_column_order() {
        let text = template("{{ row | tojson }}").render(&row()).unwrap();
        assert_eq!(text, r#"{"Z":"Fish & \"Co's\" <b>","A":7,"E":""}"#);
    }

    #[test]
    fn columns_go_by_name_and_keep_their_bytes() {
        let text = template("{{ Z }}|{{ row.A }}|{{ row['E'] }}|{{ A + 1 }}").render(&row()).unwrap();
        assert_eq!(text, "Fish & \"Co's\" <b>|7||8");
    }

    #[test]
    fn an_unknown_column_is_named_with_the_known_ones() {
        let columns = ["Z".to_owned(), "A".to_owned()];
        for source in ["{{ B }}", "{{ row.B }}", "{% if A %}{{ B | upper }}{% endif %}"] {
            let error = template(source).check_columns("offers.csv", &columns).unwrap_err();
            assert_eq!(error.to_string(), "prompt template names column B that offers.csv lacks (it has Z, A)");
        }
        let fine = template("{% for key in row %}{{ key }}{% set x = A %}{{ x }}{{ range(3) }}{% endfor %}");
        fine.check_columns("offers.csv", &columns).unwrap();
    }

    #[test]
    fn a_missing_value_fails_even_where_it_cannot_be_foreseen() {
        let error = template("{{ row['B'] }}").render(&row()).unwrap_err();
        assert!(error.to_string().starts_with("prompt template failed: "), "{error}");
    }

    #[test]
    fn bad_syntax_is_told_with_its_line() {
        let error = RowTemplate::new("completion template", "a\n{{ b").unwrap_err().to_string();
        assert!(error.starts_with("completion template is not valid Jinja: ") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn endless_templates_stop() {
        let long = "{% for a in range(9999) %}{% for b in range(9999) %}BODY{% endfor %}{% endfor %}";
        let silent = template(&long.replace("BODY", "")).render(&row()).unwrap_err().to_string();
        assert_eq!(silent, "prompt template failed: it takes too many steps");
        let loud =
            template("{% for a in range(9999) %}{{ Z * 99 }}{% endfor %}").render(&row()).unwrap_err().to_string();
        assert_eq!(loud, "prompt template failed: it gives more than 1048576 bytes");
    }
}

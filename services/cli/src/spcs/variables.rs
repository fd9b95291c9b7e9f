//! The variables of a specification template: `{{ name }}` and `{{ name | default('value') }}`.

use std::collections::BTreeMap;

use super::finding::{Finding, Findings, Severity};

/// The text with each variable's value. Lines stay where they are. Nothing if a variable has no value.
pub(super) fn expand(text: &str, values: &BTreeMap<String, String>, findings: &mut Findings) -> Option<String> {
    let mut expanded = String::with_capacity(text.len());
    let mut whole = true;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        // A comment may speak of variables.
        let mut rest = if line.trim_start().starts_with('#') { "" } else { line };
        if rest.is_empty() {
            expanded.push_str(line);
        }
        while let Some((before, after)) = rest.split_once("{{") {
            expanded.push_str(before);
            let (inner, after) = after.split_once("}}").unwrap_or((after.trim_end(), ""));
            match value(inner, values) {
                Ok(value) => expanded.push_str(&value),
                Err((message, way_out)) => {
                    whole = false;
                    findings.push(Finding {
                        severity: Severity::Error,
                        rule: "variable",
                        path: String::new(),
                        line: index as u64 + 1,
                        message,
                        way_out,
                    });
                }
            }
            rest = after;
        }
        expanded.push_str(rest);
    }
    whole.then_some(expanded)
}

fn value(inner: &str, values: &BTreeMap<String, String>) -> Result<String, (String, String)> {
    let (name, filter) = inner.split_once('|').map_or((inner, None), |(name, filter)| (name, Some(filter.trim())));
    let name = name.trim();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let message = format!("`{{{{{inner}}}}}` is no variable of a specification template");
        return Err((message, "write {{ name }} or {{ name | default('value') }}".to_owned()));
    }
    if let Some(value) = values.get(name) {
        // USING takes JSON: a text with `/` or `:` has quotes of its own there.
        return Ok(serde_json::from_str::<String>(value).unwrap_or_else(|_| value.clone()));
    }
    match filter.map(default) {
        Some(Some(value)) => Ok(value.to_owned()),
        Some(None) => Err((
            format!("`{}` is not the one filter of specification templates", filter.unwrap_or_default()),
            "write default('value') or default('value', true)".to_owned(),
        )),
        None => Err((
            format!("the variable `{name}` has no value"),
            format!("give it with --set {name}=VALUE, as USING does, or a default in the template"),
        )),
    }
}

/// The value in `default('value')` or `default("value", true)`.
fn default(filter: &str) -> Option<&str> {
    let inner = filter.strip_prefix("default(")?.strip_suffix(')')?.trim();
    let quote = inner.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    let (value, rest) = inner.get(1..)?.split_once(quote)?;
    let rest = rest.trim().trim_start_matches(',').trim();
    ["", "true", "false"].contains(&rest).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let mut findings = Findings::default();
        let values = BTreeMap::from([("tag".to_owned(), "\"a/b:1\"".to_owned())]);
        expand(text, &values, &mut findings).ok_or_else(|| findings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn values_and_defaults_are_put_in() {
        assert_eq!(
            expanded("x: {{ tag }}/{{a|default('b')}}{{ c | default(\"\", true) }}\ny").unwrap(),
            "x: a/b:1/b\ny"
        );
        assert_eq!(expanded("# {{ nothing }}\nx: 1").unwrap(), "# {{ nothing }}\nx: 1");
    }

    #[test]
    fn what_has_no_value_is_named_with_its_line() {
        let error = expanded("a: 1\nb: {{ missing }}\n").unwrap_err();
        assert!(error.starts_with("2: ") && error.contains("missing") && error.contains("--set"), "{error}");
        assert!(expanded("{{ x | upper }}").unwrap_err().contains("upper"));
        assert!(expanded("{{ x.y }}").unwrap_err().contains("x.y"));
    }
}

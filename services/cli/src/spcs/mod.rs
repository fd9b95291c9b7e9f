//! Specifications for Snowpark Container Services: what the account would refuse in one, and Firn's own.
//!
//! A specification is read into a tree that knows its lines, held against the reference's fields (`schema`), then
//! against each rule that crosses fields (`rules`). Everything that is wrong is found in one go.

mod document;
mod families;
mod finding;
mod render;
mod rules;
mod schema;
mod sql;
mod units;
mod variables;

use std::collections::BTreeMap;

pub(crate) use document::parse;
pub(crate) use families::{FAMILIES, Family, family};
pub(crate) use finding::{Findings, Severity};
pub(crate) use render::{Kind, Order, Statement, render, statement};
pub(crate) use rules::Needs;
pub(crate) use sql::check_script;

/// What a specification is held against.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// The family of the compute pool's nodes, if it is known.
    pub(crate) family: Option<&'static Family>,
    /// The specification is a job's and not a service's.
    pub(crate) job: bool,
    /// Values of the template's variables, as `USING` gives them.
    pub(crate) variables: BTreeMap<String, String>,
}

/// Everything that is wrong with a specification, and what one instance needs if that can be told.
pub(crate) fn check(text: &str, account: &Account) -> (Findings, Option<Needs>) {
    let mut findings = Findings::default();
    let Some(text) = variables::expand(text, &account.variables, &mut findings) else { return (findings, None) };
    let root = match parse(&text) {
        Ok(root) => root,
        Err(finding) => {
            findings.push(*finding);
            return (findings, None);
        }
    };
    let root = root.cursor();
    schema::check(&root, &mut findings);
    let needs = rules::check(&root, account, &text, &mut findings);
    findings.sort();
    (findings, needs)
}

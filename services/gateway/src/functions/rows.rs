//! Snowflake's format of batches: `{"data": [[row number, argument, …], …]}`, and the same with one result a row.

use std::{future::Future, time::Duration};

use axum::http::StatusCode;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::batches::Outcome;
use crate::{error::ApiError, fields::Fields};

/// Most rows of a batch.
const MOST_ROWS: usize = 500;
/// Longest that a batch runs; Snowflake gives it up by then.
const BATCH_TIME: Duration = Duration::from_secs(3600);

/// A call of the function.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) number: Value,
    /// None if the row is no list.
    pub(crate) arguments: Option<Vec<Value>>,
}

impl Row {
    /// The arguments; those at the end that are null are like none, as SQL has no optional ones.
    pub(crate) fn arguments(self) -> Result<Vec<Value>, ApiError> {
        let wrong = || ApiError::field("data", "a row must be a list of its number and the arguments");
        let mut arguments = self.arguments.ok_or_else(wrong)?;
        while arguments.last().is_some_and(Value::is_null) {
            arguments.pop();
        }
        Ok(arguments)
    }
}

/// Reads a batch. What is wrong with one row is said in its place, later.
pub(crate) fn parse(body: &[u8]) -> Result<Vec<Row>, ApiError> {
    let mut fields = Fields::parse(body)?;
    let data: Vec<Value> =
        fields.take("data")?.ok_or_else(|| ApiError::field("data", "data must be a list of rows"))?;
    fields.end()?;
    if data.len() > MOST_ROWS {
        let message =
            format!("data has {} rows: set MAX_BATCH_ROWS of the function to at most {MOST_ROWS}", data.len());
        return Err(ApiError::field("data", message));
    }
    let row = |(index, row): (usize, Value)| match row {
        Value::Array(mut values) if !values.is_empty() => {
            let number = values.remove(0);
            Row { number, arguments: Some(values) }
        }
        _ => Row { number: json!(index), arguments: None },
    };
    Ok(data.into_iter().enumerate().map(row).collect())
}

/// Does all rows, so many at once. A row that fails has its error as its result; if all fail because the service is busy or
/// not there, the batch does, so that Snowflake sends it again.
pub(crate) async fn run<F>(rows: Vec<Row>, at_once: usize, one: impl Fn(Row) -> F) -> Outcome
where
    F: Future<Output = Result<Value, ApiError>>,
{
    let deadline = Instant::now() + BATCH_TIME;
    let results = stream::iter(rows).map(|row| {
        let (number, work) = (row.number.clone(), one(row));
        async move {
            let late = || ApiError::refused(StatusCode::GATEWAY_TIMEOUT, "the batch took too long");
            let result = timeout_at(deadline, work).await.unwrap_or_else(|_| Err(late()));
            (number, result)
        }
    });
    let results: Vec<(Value, Result<Value, ApiError>)> = results.buffered(at_once).collect().await;
    let busy = |(_, result): &(Value, Result<Value, ApiError>)| {
        result.as_ref().err().filter(|error| error.retry_after().is_some()).cloned()
    };
    let all_busy: Option<Vec<ApiError>> = results.iter().map(busy).collect();
    if let Some(error) = all_busy.and_then(|mut errors| errors.pop()) {
        return Err(error);
    }
    let row = |(number, result): (Value, Result<Value, ApiError>)| {
        json!([number, result.unwrap_or_else(|error| error.body())])
    };
    let data: Vec<Value> = results.into_iter().map(row).collect();
    Ok(json!({"data": data}).to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_row_is_no_wrong_batch() {
        let rows = parse(br#"{"data": [[7, "a", null], "text", [], [8]]}"#).unwrap();
        let numbers: Vec<&Value> = rows.iter().map(|row| &row.number).collect();
        assert_eq!(numbers, [&json!(7), &json!(1), &json!(2), &json!(8)]);
        let arguments: Vec<_> = rows.into_iter().map(|row| row.arguments().ok()).collect();
        assert_eq!(arguments, [Some(vec![json!("a")]), None, None, Some(vec![])]);
        for wrong in [&b"{}"[..], br#"{"data": {}}"#, br#"{"data": [], "more": 1}"#, b"[]"] {
            assert!(parse(wrong).is_err());
        }
    }
}

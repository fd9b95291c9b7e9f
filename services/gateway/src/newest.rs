//! OpenAI's lists: the newest first, so many after one that the caller names.

use axum::{
    Json,
    extract::{Query, rejection::QueryRejection},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;

/// Most objects of a list.
const MOST: usize = 1_000;
/// Objects that a service is asked for at once.
pub(crate) const PAGE: i32 = 1_000;
/// Most such pages: nothing is asked for without an end.
pub(crate) const MOST_PAGES: usize = 100;

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Part {
    after: Option<String>,
    limit: Option<usize>,
    order: Option<String>,
    /// For files: those of one purpose.
    pub(crate) purpose: Option<String>,
    /// For events: as they come.
    pub(crate) stream: Option<bool>,
    /// For events that stream: those after this one.
    pub(crate) cursor: Option<u64>,
}

pub(crate) type Asked = Result<Query<Part>, QueryRejection>;

/// Reads the query.
pub(crate) fn part(asked: Asked) -> Result<Part, ApiError> {
    let part = asked.map(|Query(part)| part).map_err(|rejection| ApiError::field("limit", rejection.body_text()))?;
    if part.limit.is_some_and(|limit| !(1..=MOST).contains(&limit)) {
        return Err(ApiError::field("limit", format!("limit must be from 1 to {MOST}")));
    }
    Ok(part)
}

impl Part {
    /// Cuts the part out of all objects, which come oldest first and have an `id`.
    pub(crate) fn list(&self, mut objects: Vec<Value>, usual: usize) -> Result<Json<Value>, ApiError> {
        match self.order.as_deref() {
            None | Some("desc") => objects.reverse(),
            Some("asc") => {}
            Some(_) => return Err(ApiError::field("order", "order must be asc or desc")),
        }
        let start = match &self.after {
            None => 0,
            Some(after) => {
                let at = objects.iter().position(|object| object["id"] == after.as_str());
                1 + at.ok_or_else(|| ApiError::field("after", "after names nothing in this list"))?
            }
        };
        let mut data = objects.split_off(start);
        let limit = self.limit.unwrap_or(usual);
        let has_more = data.len() > limit;
        data.truncate(limit);
        let id = |object: Option<&Value>| object.map_or(Value::Null, |object| object["id"].clone());
        let (first, last) = (id(data.first()), id(data.last()));
        Ok(Json(json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_from_the_newest_on() {
        let all: Vec<Value> = (1..=5).map(|n| json!({"id": format!("x-{n}")})).collect();
        let ids = |part: Part| {
            let Json(list) = part.list(all.clone(), 2).unwrap();
            let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|object| object["id"].clone()).collect();
            (ids, list["has_more"].as_bool().unwrap(), list["last_id"].clone())
        };
        assert_eq!(ids(Part::default()), (vec![json!("x-5"), json!("x-4")], true, json!("x-4")));
        let after = |id: &str| Some(id.to_owned());
        let rest = Part { after: after("x-4"), limit: Some(3), ..Part::default() };
        assert_eq!(ids(rest), (vec![json!("x-3"), json!("x-2"), json!("x-1")], false, json!("x-1")));
        assert_eq!(ids(Part { after: after("x-1"), ..Part::default() }), (vec![], false, Value::Null));
        let oldest = Part { order: after("asc"), limit: Some(1), ..Part::default() };
        assert_eq!(ids(oldest).0, [json!("x-1")]);
        assert!(Part { after: after("none"), ..Part::default() }.list(all.clone(), 2).is_err());
        assert!(Part { order: after("up"), ..Part::default() }.list(all, 2).is_err());
    }
}

//! OpenAI's lists: the newest first, so many after one that the caller names.

use std::{collections::VecDeque, future::Future};

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
const MOST_PAGES: usize = 100;

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
    /// What gathers the part; `usual` objects if the caller does not say how many.
    pub(crate) fn window<T>(&self, usual: usize) -> Result<Window<T>, ApiError> {
        let newest_first = match self.order.as_deref() {
            None | Some("desc") => true,
            Some("asc") => false,
            Some(_) => return Err(ApiError::field("order", "order must be asc or desc")),
        };
        let limit = self.limit.unwrap_or(usual);
        Ok(Window { newest_first, after: self.after.clone(), ..Window::newest(limit) })
    }
}

/// The part of a list that is asked for, gathered while the list goes by, oldest first.
#[derive(Debug)]
pub(crate) struct Window<T> {
    limit: usize,
    newest_first: bool,
    /// Not seen yet.
    after: Option<String>,
    is_full: bool,
    /// One more than are shown: it tells that there are more.
    kept: VecDeque<T>,
}

impl<T> Window<T> {
    /// The newest ones, newest first.
    pub(crate) fn newest(limit: usize) -> Self {
        Self { limit, newest_first: true, after: None, is_full: false, kept: VecDeque::new() }
    }

    /// Takes the next object.
    pub(crate) fn push(&mut self, id: &str, object: T) {
        if self.is_full {
            return;
        }
        if self.after.as_deref() == Some(id) {
            // Newest first, those that are wanted came before this one.
            (self.after, self.is_full) = (None, self.newest_first);
        } else if self.newest_first {
            self.kept.push_back(object);
            if self.kept.len() > self.limit + 1 {
                self.kept.pop_front();
            }
        } else if self.after.is_none() {
            self.kept.push_back(object);
            self.is_full = self.kept.len() > self.limit;
        }
    }

    /// Takes a service's list, page by page and as far as it is wanted. `page` asks for a page by its token and gives the
    /// next one's, which is empty behind the last page.
    pub(crate) async fn read<F>(mut self, page: impl Fn(String) -> F, id: impl Fn(&T) -> &str) -> Result<Self, ApiError>
    where
        F: Future<Output = Result<(Vec<T>, String), ApiError>>,
    {
        let mut token = String::new();
        for _ in 0..MOST_PAGES {
            let (objects, next) = page(token).await?;
            for object in objects {
                let id = id(&object).to_owned();
                self.push(&id, object);
            }
            token = next;
            if token.is_empty() || self.is_full {
                break;
            }
        }
        Ok(self)
    }

    /// The part in its order, and whether there is more.
    pub(crate) fn objects(self) -> Result<(Vec<T>, bool), ApiError> {
        if self.after.is_some() {
            return Err(ApiError::field("after", "after names nothing in this list"));
        }
        let has_more = self.kept.len() > self.limit;
        let kept = self.kept.into_iter();
        let objects = match self.newest_first {
            true => kept.rev().take(self.limit).collect(),
            false => kept.take(self.limit).collect(),
        };
        Ok((objects, has_more))
    }

    /// The part as OpenAI's clients read it; `shape` makes JSON with an `id`.
    pub(crate) fn list(self, shape: impl Fn(T) -> Value) -> Result<Json<Value>, ApiError> {
        let (objects, has_more) = self.objects()?;
        let data: Vec<Value> = objects.into_iter().map(shape).collect();
        let id = |object: Option<&Value>| object.map_or(Value::Null, |object| object["id"].clone());
        let (first, last) = (id(data.first()), id(data.last()));
        Ok(Json(json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more})))
    }
}

impl Window<Value> {
    /// Takes what is JSON already.
    pub(crate) fn extend(&mut self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            let id = object["id"].as_str().unwrap_or_default().to_owned();
            self.push(&id, object);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn shown(part: Part, all: &[Value]) -> Result<Value, ApiError> {
        let mut window = part.window(2)?;
        window.extend(all.iter().cloned());
        window.list(|object| object).map(|Json(list)| list)
    }

    #[test]
    fn parts_follow_each_other_from_the_newest_on() {
        let all: Vec<Value> = (1..=5).map(|n| json!({"id": format!("x-{n}")})).collect();
        let ids = |part: Part| {
            let list = shown(part, &all).unwrap();
            let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|object| object["id"].clone()).collect();
            (ids, list["has_more"].as_bool().unwrap(), list["last_id"].clone())
        };
        assert_eq!(ids(Part::default()), (vec![json!("x-5"), json!("x-4")], true, json!("x-4")));
        let after = |id: &str| Some(id.to_owned());
        let rest = Part { after: after("x-4"), limit: Some(3), ..Part::default() };
        assert_eq!(ids(rest), (vec![json!("x-3"), json!("x-2"), json!("x-1")], false, json!("x-1")));
        assert_eq!(ids(Part { after: after("x-1"), ..Part::default() }), (vec![], false, Value::Null));
        let oldest = |after, limit| Part { order: Some("asc".to_owned()), after, limit, ..Part::default() };
        assert_eq!(ids(oldest(None, Some(1))).0, [json!("x-1")]);
        assert_eq!(ids(oldest(after("x-2"), None)), (vec![json!("x-3"), json!("x-4")], true, json!("x-4")));
        assert_eq!(ids(oldest(after("x-3"), None)), (vec![json!("x-4"), json!("x-5")], false, json!("x-5")));
        for wrong in [Part { after: after("none"), ..Part::default() }, oldest(after("none"), None)] {
            assert_eq!(shown(wrong, &all).unwrap_err().body()["error"]["param"], "after");
        }
        let order = Part { order: after("up"), ..Part::default() };
        assert_eq!(shown(order, &all).unwrap_err().body()["error"]["param"], "order");
    }

    #[tokio::test]
    async fn pages_are_read_as_far_as_they_are_wanted_and_few_objects_are_kept() {
        let asked = AtomicUsize::new(0);
        let page = |token: String| {
            asked.fetch_add(1, Ordering::Relaxed);
            let at: usize = token.parse().unwrap_or(0);
            let objects = (0..10).map(|n| format!("x-{}", 10 * at + n)).collect();
            std::future::ready(Ok((objects, if at == 4 { String::new() } else { (at + 1).to_string() })))
        };
        let read = async |part: Part| {
            asked.store(0, Ordering::Relaxed);
            let window = part.window(3).unwrap().read(page, String::as_str).await.unwrap();
            assert!(window.kept.len() <= 4, "{window:?}");
            (window.objects().unwrap(), asked.load(Ordering::Relaxed))
        };
        let names = |numbers: [usize; 3]| numbers.map(|number| format!("x-{number}")).to_vec();
        assert_eq!(read(Part::default()).await, ((names([49, 48, 47]), true), 5));
        let after = Some("x-12".to_owned());
        let older = Part { after: after.clone(), ..Part::default() };
        assert_eq!(read(older).await, ((names([11, 10, 9]), true), 2));
        let newer = Part { after, order: Some("asc".to_owned()), ..Part::default() };
        assert_eq!(read(newer).await, ((names([13, 14, 15]), true), 2));
    }
}

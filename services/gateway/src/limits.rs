//! How often a tenant may ask: a bucket of requests each, which fills again by the minute.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension,
    extract::{Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;

use crate::{error::ApiError, tenant::Tenant};

/// Most tenants that are remembered.
const MOST_TENANTS: usize = 10_000;
const MINUTE: f64 = 60.0;

/// The tenants' buckets. A tenant that is not there has a full one.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    per_minute: f64,
    buckets: Arc<Mutex<HashMap<Tenant, Bucket>>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    requests: f64,
    at: Instant,
}

impl Limits {
    /// 0: no limit.
    pub(crate) fn new(per_minute: u32) -> Self {
        Self { per_minute: per_minute.into(), buckets: Arc::default() }
    }

    /// Takes a request from the tenant's bucket, or says how long it lasts until there is one.
    fn take(&self, tenant: &Tenant, now: Instant) -> Result<(), Duration> {
        if self.per_minute == 0.0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Bucket { requests: self.per_minute, at: now };
        let mut bucket = buckets.get(tenant).map_or(full, |bucket| self.filled(*bucket, now));
        let missing = 1.0 - bucket.requests;
        let taken = if missing > 0.0 {
            Err(Duration::from_secs_f64(missing * MINUTE / self.per_minute))
        } else {
            bucket.requests -= 1.0;
            Ok(())
        };
        if buckets.len() >= MOST_TENANTS && !buckets.contains_key(tenant) {
            self.make_room(&mut buckets, now);
        }
        buckets.insert(tenant.clone(), bucket);
        taken
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> Bucket {
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        Bucket { requests: (bucket.requests + since * self.per_minute / MINUTE).min(self.per_minute), at: now }
    }

    /// Forgets who has a full bucket again, or else the half that would be there first.
    fn make_room(&self, buckets: &mut HashMap<Tenant, Bucket>, now: Instant) {
        buckets.retain(|_, bucket| self.filled(*bucket, now).requests < self.per_minute);
        if buckets.len() >= MOST_TENANTS {
            let mut left: Vec<f64> = buckets.values().map(|bucket| self.filled(*bucket, now).requests).collect();
            left.sort_unstable_by(f64::total_cmp);
            let middle = left.get(left.len() / 2).copied().unwrap_or(0.0);
            buckets.retain(|_, bucket| self.filled(*bucket, now).requests < middle);
        }
    }
}

/// Refuses what is too much. Reading is not counted: a batch that is polled must not count against itself.
pub(crate) async fn check(
    State(limits): State<Limits>,
    Extension(tenant): Extension<Tenant>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if request.method() != Method::GET {
        limits.take(&tenant, Instant::now()).map_err(ApiError::too_many)?;
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::ingress(&HeaderMap::from_iter([("sf-context-current-user".parse().unwrap(), name.parse().unwrap())]))
            .unwrap()
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        let (limits, start, ada) = (Limits::new(2), Instant::now(), tenant("ADA"));
        assert!(limits.take(&ada, start).is_ok() && limits.take(&ada, start).is_ok());
        assert_eq!(limits.take(&ada, start), Err(Duration::from_secs(30)));
        assert!(limits.take(&tenant("BOB"), start).is_ok(), "another's bucket is another one");
        let later = start + Duration::from_secs(15);
        assert_eq!(limits.take(&ada, later), Err(Duration::from_secs(15)));
        assert!(limits.take(&ada, start + Duration::from_secs(30)).is_ok());
        assert!(Limits::new(0).take(&ada, start).is_ok());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (limits, start) = (Limits::new(2), Instant::now());
        let ada = tenant("ADA");
        assert!(limits.take(&ada, start).is_ok() && limits.take(&ada, start).is_ok());
        for index in 0..3 * MOST_TENANTS {
            limits.take(&tenant(&format!("user-{index}")), start).unwrap();
        }
        assert!(limits.buckets.lock().unwrap().len() <= MOST_TENANTS);
        assert!(limits.take(&ada, start).is_err(), "who has used the most is remembered");
    }
}

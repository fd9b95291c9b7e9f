//! Statuses as every service of Firn answers them: a code, a sentence, and `google.rpc` details.
//!
//! Domains are `<role>.firn.dev`; reasons are UPPER_SNAKE and stable, for programs; messages are for people and may
//! change.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::trace;

/// Makes a status with an `ErrorInfo`.
#[must_use]
pub fn status(code: Code, domain: &str, reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, info(domain, reason))
}

/// Makes an INVALID_ARGUMENT that names the request's field by its path, such as `spec.hyperparameters.epochs`.
#[must_use]
pub fn invalid_argument(domain: &str, field: &str, description: impl Into<String>) -> Status {
    invalid_argument_because(domain, "INVALID_FIELD", field, description)
}

/// The same with a reason that programs act on.
#[must_use]
pub fn invalid_argument_because(domain: &str, reason: &str, field: &str, description: impl Into<String>) -> Status {
    let description = description.into();
    let message = format!("{field}: {description}");
    let mut details = info(domain, reason);
    details.add_bad_request_violation(field, description);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// Makes a NOT_FOUND for a resource, such as the `job` named `jobs/x`.
#[must_use]
pub fn not_found(domain: &str, resource_type: &str, name: &str) -> Status {
    let message = format!("there is no {resource_type} `{name}`");
    let mut details = info(domain, "NOT_FOUND");
    details.set_resource_info(resource_type, name, "", "");
    Status::with_error_details(Code::NotFound, message, details)
}

/// Makes an ALREADY_EXISTS for a resource.
#[must_use]
pub fn already_exists(domain: &str, resource_type: &str, name: &str) -> Status {
    let message = format!("there is a {resource_type} `{name}` already");
    let mut details = info(domain, "ALREADY_EXISTS");
    details.set_resource_info(resource_type, name, "", "");
    Status::with_error_details(Code::AlreadyExists, message, details)
}

/// Makes a FAILED_PRECONDITION: the request is right, the resource's state is not.
#[must_use]
pub fn failed_precondition(domain: &str, reason: &str, message: impl Into<String>) -> Status {
    status(Code::FailedPrecondition, domain, reason, message)
}

/// Makes an UNAVAILABLE that says when to try again.
#[must_use]
pub fn unavailable(domain: &str, reason: &str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = info(domain, reason);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// Makes a RESOURCE_EXHAUSTED that says when to try again.
#[must_use]
pub fn resource_exhausted(domain: &str, reason: &str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = info(domain, reason);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// Makes an INTERNAL that tells the caller nothing but the trace to ask for; the cause goes to the log.
#[must_use]
pub fn internal(domain: &str, error: &dyn Error) -> Status {
    tracing::error!(error = %chain(error), domain, "internal error");
    let mut metadata = HashMap::new();
    if let Some(id) = trace::current_trace_id() {
        metadata.insert("trace_id".to_owned(), id);
    }
    let mut details = ErrorDetails::new();
    details.set_error_info("INTERNAL", domain, metadata);
    Status::with_error_details(Code::Internal, "internal error; the service's log has the cause", details)
}

/// Returns the `reason` of a status, if it has one.
#[must_use]
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// An error and its causes in one line: `cannot read /x: permission denied`. A cause whose text its parent repeats is
/// left out.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Whether a call that ends so is the server's defect.
pub(crate) fn is_defect(code: Code) -> bool {
    matches!(code, Code::Internal | Code::Unknown | Code::DataLoss)
}

/// The code's name in the protocol, such as `NOT_FOUND`.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn info(domain: &str, reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, domain, HashMap::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "registry.firn.dev";

    #[test]
    fn an_invalid_argument_names_the_field() {
        let status = invalid_argument(DOMAIN, "spec.model", "must not be empty");
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "spec.model: must not be empty"));
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!((violations.len(), violations[0].field.as_str()), (1, "spec.model"));
        assert_eq!(status.get_details_error_info().unwrap().domain, DOMAIN);
    }

    #[test]
    fn resources_and_retries_are_in_the_details() {
        let status = not_found(DOMAIN, "model", "models/x");
        assert_eq!(status.get_details_resource_info().unwrap().resource_name, "models/x");
        assert_eq!(reason(&already_exists(DOMAIN, "model", "models/x")).as_deref(), Some("ALREADY_EXISTS"));
        let status = unavailable(DOMAIN, "LOADING", "the base is being loaded", Duration::from_secs(2));
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(2)));
        assert_eq!(reason(&status).as_deref(), Some("LOADING"));
    }

    #[test]
    fn an_internal_error_keeps_its_cause_to_itself() {
        let status = internal(DOMAIN, &std::io::Error::other("password is 1234"));
        assert_eq!(status.code(), Code::Internal);
        assert!(!format!("{status:?}").contains("1234"));
    }

    #[test]
    fn code_names_are_those_of_the_protocol() {
        assert_eq!(code_name(Code::from(5)), "NOT_FOUND");
        assert_eq!(code_name(Code::from(16)), "UNAUTHENTICATED");
    }
}

//! Tells the registry of the finished artifact.

use firn_kit::{Channel, retry_unavailable};
use firn_proto::registry::v1::{CreateVersionRequest, Lineage, registry_service_client::RegistryServiceClient};
use tonic::{Code, Request, Status};

use crate::{
    config::{ABSENCE, REGISTER_TIME},
    job::Job,
    record::{Evaluation, StateRecord},
};

/// Why there is no version.
#[derive(Debug, thiserror::Error)]
#[error("the registry says: {}", .0.message())]
pub(crate) struct RegisterError(Status);

/// Registers the artifact and returns the version's name. The request is the same after a restart, so it makes one
/// version.
pub(crate) async fn register(
    client: &RegistryServiceClient<Channel>,
    job: &Job,
    source: &str,
) -> Result<String, RegisterError> {
    let request = request(job, source);
    let created = retry_unavailable(ABSENCE.max(2 * REGISTER_TIME), || {
        let (mut client, mut request) = (client.clone(), Request::new(request.clone()));
        request.set_timeout(REGISTER_TIME);
        async move {
            match client.create_version(request).await {
                // The registry copies on after a deadline, and other copies end.
                Err(status) if matches!(status.code(), Code::DeadlineExceeded | Code::ResourceExhausted) => {
                    Err(Status::unavailable(status.message()))
                }
                answer => answer,
            }
        }
    });
    Ok(created.await.map_err(RegisterError)?.into_inner().name)
}

fn request(job: &Job, source: &str) -> CreateVersionRequest {
    let (record, spec) = (job.record(), &job.spec.spec);
    let snapshot = record.snapshot.clone();
    let lineage = Lineage {
        base: spec.base.clone(),
        snapshot: snapshot.as_ref().map(|snapshot| snapshot.name.clone()).unwrap_or_default(),
        job: job.name(),
        template_sha256: snapshot.map(|snapshot| snapshot.template_sha256).unwrap_or_default(),
    };
    CreateVersionRequest {
        model: spec.model.clone(),
        source: source.to_owned(),
        lineage: Some(lineage),
        metrics: metrics(&record).into_iter().collect(),
        alias: spec.alias.clone(),
        request_id: job.name(),
    }
}

/// Numbers that describe a version.
pub(crate) fn metrics(record: &StateRecord) -> Vec<(String, f64)> {
    let of = |name: &str, evaluation: &Option<Evaluation>| {
        let evaluation = evaluation.as_ref();
        let loss = evaluation.map(|evaluation| (format!("{name}.loss"), evaluation.loss));
        let recall = evaluation.and_then(|evaluation| evaluation.field_recall);
        let preferred = evaluation.and_then(|evaluation| evaluation.preference_accuracy);
        [
            loss,
            recall.map(|recall| (format!("{name}.field_recall"), recall)),
            preferred.map(|share| (format!("{name}.preference_accuracy"), share)),
        ]
    };
    let train = [
        Some(("train.tokens".to_owned(), record.train_tokens as f64)),
        Some(("train.seconds".to_owned(), record.train_seconds)),
    ];
    let all = of("base", &record.base_evaluation).into_iter().chain(of("tuned", &record.tuned_evaluation)).chain(train);
    let merge = record.merge_proof.iter().flat_map(|proof| {
        let difference = f64::from(proof.largest_logit_difference);
        [
            ("merge.largest_logit_difference".to_owned(), difference),
            ("merge.greedy_agreement".to_owned(), proof.greedy_agreement),
        ]
    });
    all.flatten().chain(merge).filter(|(_, value)| value.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::MergeProof;

    #[test]
    fn only_what_was_measured_is_a_metric() {
        let mut record = StateRecord::queued(jiff::Timestamp::UNIX_EPOCH);
        (record.train_tokens, record.train_seconds) = (120, 1.5);
        let evaluation = Evaluation { loss: 2.5, rows: 1, ..Evaluation::default() };
        record.base_evaluation = Some(evaluation.clone());
        record.tuned_evaluation = Some(Evaluation { loss: f64::NAN, field_recall: Some(0.5), ..evaluation });
        let (largest_logit_difference, greedy_agreement) = (0.25, 1.0);
        record.merge_proof =
            Some(MergeProof { largest_logit_difference, greedy_agreement, tokens: 9, rows: 1, accepted: true });
        let names: Vec<(String, f64)> = metrics(&record);
        let names: Vec<(&str, f64)> = names.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(
            names,
            [
                ("base.loss", 2.5),
                ("tuned.field_recall", 0.5),
                ("train.tokens", 120.0),
                ("train.seconds", 1.5),
                ("merge.largest_logit_difference", 0.25),
                ("merge.greedy_agreement", 1.0)
            ]
        );
    }
}

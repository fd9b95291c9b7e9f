//! Which methods there are, and which are unary: a layer sees a path, not a kind, and the default deadline is for unary
//! calls alone.

use std::collections::HashMap;

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// Paths (`/package.Service/Method`) of Firn's methods, and whether each is unary.
#[derive(Debug)]
pub(crate) struct Methods(HashMap<String, bool>);

impl Methods {
    pub(crate) fn of_firn() -> Result<Self, prost::DecodeError> {
        let set = FileDescriptorSet::decode(firn_proto::FILE_DESCRIPTOR_SET)?;
        let mut paths = HashMap::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    paths.insert(path, !method.client_streaming() && !method.server_streaming());
                }
            }
        }
        Ok(Self(paths))
    }

    pub(crate) fn is_unary(&self, path: &str) -> bool {
        self.0.get(path).copied().unwrap_or_default()
    }

    /// The method of a path, as telemetry names it.
    pub(crate) fn name(&self, path: &str) -> Option<String> {
        self.0.contains_key(path).then(|| path.trim_start_matches('/').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_not_unary() {
        let methods = Methods::of_firn().unwrap();
        assert!(methods.is_unary("/firn.trainer.v1.TrainerService/GetJob"));
        assert!(!methods.is_unary("/firn.trainer.v1.TrainerService/WatchJob"));
        assert!(!methods.is_unary("/grpc.health.v1.Health/Watch"));
        assert_eq!(
            methods.name("/firn.trainer.v1.TrainerService/WatchJob").as_deref(),
            Some("firn.trainer.v1.TrainerService/WatchJob")
        );
        assert_eq!(methods.name("/firn.trainer.v1.TrainerService/Invented"), None);
    }
}

//! Which methods are unary: a layer sees a path, not a kind, and the default deadline is for unary calls alone.

use std::collections::HashSet;

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// Paths (`/package.Service/Method`) of Firn's unary methods.
#[derive(Debug)]
pub(crate) struct UnaryMethods(HashSet<String>);

impl UnaryMethods {
    pub(crate) fn of_firn() -> Result<Self, prost::DecodeError> {
        let set = FileDescriptorSet::decode(firn_proto::FILE_DESCRIPTOR_SET)?;
        let mut paths = HashSet::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    if !method.client_streaming() && !method.server_streaming() {
                        paths.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                    }
                }
            }
        }
        Ok(Self(paths))
    }

    pub(crate) fn contains(&self, path: &str) -> bool {
        self.0.contains(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_not_unary() {
        let methods = UnaryMethods::of_firn().unwrap();
        assert!(methods.contains("/firn.trainer.v1.TrainerService/GetJob"));
        assert!(!methods.contains("/firn.trainer.v1.TrainerService/WatchJob"));
        assert!(!methods.contains("/grpc.health.v1.Health/Watch"));
    }
}

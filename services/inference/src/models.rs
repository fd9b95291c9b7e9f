//! What can be asked for by name: the base, and the adapters that aliases name or that calls have loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use firn_llm::{model::Adapter, template::KnownTemplate};

/// Name of the base.
pub(crate) const BASE: &str = "base";
/// Names that an error lists.
const MOST_LISTED: usize = 20;
/// Characters of a caller's name that an error repeats.
const LONGEST_SHOWN: usize = 80;

/// There is no such model.
#[derive(Debug, thiserror::Error)]
#[error("there is no model `{name}`; there is {there}")]
pub(crate) struct UnknownModel {
    name: String,
    there: String,
}

/// An adapter under a name.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// Number of the version.
    pub(crate) number: u64,
    /// The registry's name of the version.
    pub(crate) version: String,
    pub(crate) adapter: Arc<Adapter>,
    /// The chat template that it was trained with, where that is not the base's own.
    pub(crate) template: Option<KnownTemplate>,
    /// A call has loaded it; no alias names it.
    pub(crate) loaded: bool,
}

/// The adapters by `model@alias`, or by what a call has loaded. Clones share them. An answer takes its adapter's `Arc` once, so a move of the alias
/// does not touch it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Models(Arc<RwLock<BTreeMap<String, Served>>>);

impl Models {
    /// Finds a model: none for the base, else the adapter. `model@3` is any loaded alias of that version.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Served>, UnknownModel> {
        if name.is_empty() || name == BASE {
            return Ok(None);
        }
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = models.get(name) {
            return Ok(Some(served.clone()));
        }
        // Aliases begin with a letter, so a number is never one.
        let numbered = name.rsplit_once('@').and_then(|(model, number)| Some((model, number.parse::<u64>().ok()?)));
        if let Some((model, number)) = numbered {
            let of_model = |id: &str| id.split_once('@').is_some_and(|(owner, _)| owner == model);
            if let Some((_, served)) = models.iter().find(|(id, served)| served.number == number && of_model(id)) {
                return Ok(Some(served.clone()));
            }
        }
        let there: Vec<&str> = [BASE].into_iter().chain(models.keys().map(String::as_str)).take(MOST_LISTED).collect();
        let name = name.chars().take(LONGEST_SHOWN).collect();
        Err(UnknownModel { name, there: there.join(", ") })
    }

    /// The adapters, by name.
    pub(crate) fn list(&self) -> Vec<(String, Served)> {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        models.iter().map(|(id, served)| (id.clone(), served.clone())).collect()
    }

    /// What is served as `id` now.
    pub(crate) fn get(&self, id: &str) -> Option<Served> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// A version as it is served, if it is, under any name.
    pub(crate) fn of_version(&self, version: &str) -> Option<Served> {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        models.values().find(|served| served.version == version).cloned()
    }

    /// Number of names.
    pub(crate) fn count(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Serves an adapter as `id` from the next request on.
    pub(crate) fn set(&self, id: &str, served: Served) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), served);
    }

    /// Serves `id` no more.
    pub(crate) fn remove(&self, id: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Serves only these, and what was loaded by name.
    pub(crate) fn retain(&self, ids: &BTreeSet<String>) {
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        models.retain(|id, served| served.loaded || ids.contains(id));
    }

    /// Serves what a call has loaded as `id` no more; false if there is none.
    pub(crate) fn unload(&self, id: &str) -> bool {
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_loaded = models.get(id).is_some_and(|served| served.loaded);
        is_loaded && models.remove(id).is_some()
    }
}

#[cfg(test)]
mod tests {
    use firn_llm::{config::ModelConfig, device::Device, model::LoraConfig};

    use super::*;

    #[test]
    fn names_aliases_and_numbers_are_found() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
        let config = ModelConfig::from_dir(&dir).unwrap();
        let adapter = Arc::new(Adapter::new(&config, LoraConfig::all_linear(1), 0, &Device::cpu()));
        let models = Models::default();
        let version = "models/a/versions/2".to_owned();
        let served = Served {
            number: 2,
            version: version.clone(),
            adapter: Arc::clone(&adapter),
            template: None,
            loaded: false,
        };
        models.set("a@best", served.clone());
        assert!(models.find("").unwrap().is_none() && models.find("base").unwrap().is_none());
        for name in ["a@best", "a@2"] {
            assert!(Arc::ptr_eq(&models.find(name).unwrap().unwrap().adapter, &adapter), "{name}");
        }
        assert!(models.of_version(&version).is_some() && models.of_version("models/a/versions/1").is_none());
        for name in ["a", "b@2", "a@3", "a@-2", "@2", "Base"] {
            let text = models.find(name).unwrap_err().to_string();
            assert_eq!(text, format!("there is no model `{name}`; there is base, a@best"));
        }
        models.set("a@7", Served { number: 7, loaded: true, ..served });
        models.retain(&BTreeSet::new());
        assert_eq!(models.list().into_iter().map(|(id, _)| id).collect::<Vec<_>>(), ["a@7"]);
        assert!(!models.unload("a@best") && models.unload("a@7") && models.count() == 0);
    }
}

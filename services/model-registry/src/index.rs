//! What is registered, in memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::record::{AliasRecord, Version};

/// All models.
#[derive(Debug, Default)]
pub(crate) struct Index {
    models: BTreeMap<String, Model>,
    /// Versions by the `request_id` that made them.
    requests: HashMap<String, Arc<Version>>,
}

#[derive(Debug, Default)]
struct Model {
    versions: BTreeMap<u64, Arc<Version>>,
    aliases: BTreeMap<String, Target>,
    /// Every move that there ever was: a retry must not repeat one that a later move undid.
    moved: BTreeSet<(String, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    version: u64,
    sequence: u64,
}

/// A version with the aliases that point to it.
#[derive(Clone, Debug)]
pub(crate) struct VersionView {
    pub(crate) version: Arc<Version>,
    pub(crate) aliases: Vec<String>,
}

/// Where an alias points.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AliasView {
    pub(crate) model: String,
    pub(crate) alias: String,
    pub(crate) version: u64,
    pub(crate) sequence: u64,
}

/// A model.
#[derive(Clone, Debug)]
pub(crate) struct ModelView {
    pub(crate) model: String,
    pub(crate) versions: usize,
    pub(crate) aliases: Vec<AliasView>,
}

/// An alias and the version that it points to.
#[derive(Clone, Debug)]
pub(crate) struct Pointer {
    pub(crate) alias: AliasView,
    pub(crate) version: VersionView,
}

impl Index {
    pub(crate) fn insert(&mut self, version: Version) {
        let version = Arc::new(version);
        let request_id = &version.record.request.request_id;
        if !request_id.is_empty() {
            self.requests.insert(request_id.clone(), Arc::clone(&version));
        }
        let model = self.models.entry(version.model().to_owned()).or_default();
        model.versions.insert(version.number(), version);
    }

    /// Moves an alias, unless a later move is known, and returns where it points. Returns nothing if there is no such
    /// version.
    pub(crate) fn point(&mut self, model: &str, record: &AliasRecord, sequence: u64) -> Option<Pointer> {
        let found = self.models.get_mut(model)?;
        if !found.versions.contains_key(&record.version) {
            return None;
        }
        found.moved.insert((record.alias.clone(), record.version));
        if found.aliases.get(&record.alias).is_none_or(|target| target.sequence < sequence) {
            found.aliases.insert(record.alias.clone(), Target { version: record.version, sequence });
        }
        self.pointer(model, &record.alias)
    }

    pub(crate) fn by_request(&self, request_id: &str) -> Option<Arc<Version>> {
        self.requests.get(request_id).cloned()
    }

    pub(crate) fn version(&self, model: &str, number: u64) -> Option<VersionView> {
        let model = self.models.get(model)?;
        model.versions.get(&number).map(|version| model.view(version))
    }

    pub(crate) fn pointer(&self, model: &str, alias: &str) -> Option<Pointer> {
        let found = self.models.get(model)?;
        let target = found.aliases.get(alias)?;
        let version = found.view(found.versions.get(&target.version)?);
        Some(Pointer { alias: target.view(model, alias), version })
    }

    /// Did the alias ever point to this version?
    pub(crate) fn has_moved(&self, model: &str, alias: &str, version: u64) -> bool {
        self.models.get(model).is_some_and(|model| model.moved.contains(&(alias.to_owned(), version)))
    }

    /// The highest number; 0 without versions.
    pub(crate) fn last(&self, model: &str) -> u64 {
        self.models.get(model).and_then(|model| model.versions.keys().next_back()).copied().unwrap_or(0)
    }

    /// Oldest first; nothing if there is no such model.
    pub(crate) fn versions(&self, model: &str) -> Option<Vec<VersionView>> {
        let model = self.models.get(model)?;
        Some(model.versions.values().map(|version| model.view(version)).collect())
    }

    pub(crate) fn models(&self) -> Vec<ModelView> {
        self.models.iter().map(|(name, model)| model.summary(name)).collect()
    }

    pub(crate) fn pointers(&self) -> Vec<Pointer> {
        let aliases = self.models.iter().flat_map(|(name, model)| model.aliases.keys().map(move |alias| (name, alias)));
        aliases.filter_map(|(model, alias)| self.pointer(model, alias)).collect()
    }
}

impl Model {
    fn view(&self, version: &Arc<Version>) -> VersionView {
        let points_here =
            |(alias, target): (&String, &Target)| (target.version == version.number()).then(|| alias.clone());
        VersionView { version: Arc::clone(version), aliases: self.aliases.iter().filter_map(points_here).collect() }
    }

    fn summary(&self, name: &str) -> ModelView {
        let aliases = self.aliases.iter().map(|(alias, target)| target.view(name, alias)).collect();
        ModelView { model: name.to_owned(), versions: self.versions.len(), aliases }
    }
}

impl Target {
    fn view(self, model: &str, alias: &str) -> AliasView {
        let Self { version, sequence } = self;
        AliasView { model: model.to_owned(), alias: alias.to_owned(), version, sequence }
    }
}

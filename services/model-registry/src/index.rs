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
    /// Moves that can't be told any more, by their number.
    lost: BTreeMap<u64, LostMove>,
}

/// A move of an alias whose record is damaged. The alias, or each one that it may have been, can't be told until a later
/// move: to go on as if there had been none would put a version in place of the one that was promoted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LostMove {
    /// Which alias moved, if the record still says that.
    pub(crate) alias: Option<String>,
    /// What is wrong with it.
    pub(crate) reason: String,
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

/// An alias that can't be told, because of the move with this number.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Doubt {
    pub(crate) model: String,
    pub(crate) alias: String,
    pub(crate) sequence: u64,
    pub(crate) reason: String,
    /// Where the alias pointed before; 0 if that is not known.
    pub(crate) before: u64,
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

    /// Moves an alias, unless a later move is known, and returns whether there is such a version.
    pub(crate) fn point(&mut self, model: &str, record: &AliasRecord, sequence: u64) -> bool {
        let Some(found) = self.models.get_mut(model) else { return false };
        if !found.versions.contains_key(&record.version) {
            return false;
        }
        found.moved.insert((record.alias.clone(), record.version));
        if found.aliases.get(&record.alias).is_none_or(|target| target.sequence < sequence) {
            found.aliases.insert(record.alias.clone(), Target { version: record.version, sequence });
        }
        true
    }

    /// Takes these moves of a model for lost, and no others. Returns the aliases that can be told again. A model without
    /// versions has no alias that could have moved.
    pub(crate) fn lose(&mut self, model: &str, lost: BTreeMap<u64, LostMove>) -> Vec<Pointer> {
        let Some(found) = self.models.get_mut(model) else { return vec![] };
        if found.lost == lost {
            return vec![];
        }
        let doubtful: Vec<String> =
            found.aliases.keys().filter(|alias| found.doubt(alias).is_some()).cloned().collect();
        found.lost = lost;
        doubtful.iter().filter_map(|alias| self.pointer(model, alias)).collect()
    }

    pub(crate) fn by_request(&self, request_id: &str) -> Option<Arc<Version>> {
        self.requests.get(request_id).cloned()
    }

    pub(crate) fn version(&self, model: &str, number: u64) -> Option<VersionView> {
        let model = self.models.get(model)?;
        model.versions.get(&number).map(|version| model.view(version))
    }

    /// Where an alias points; nothing if there is none, or it can't be told.
    pub(crate) fn pointer(&self, model: &str, alias: &str) -> Option<Pointer> {
        let found = self.models.get(model)?;
        let target = found.aliases.get(alias).filter(|_| found.doubt(alias).is_none())?;
        let version = found.view(found.versions.get(&target.version)?);
        Some(Pointer { alias: target.view(model, alias), version })
    }

    /// Why an alias can't be told, if it can't.
    pub(crate) fn doubt(&self, model: &str, alias: &str) -> Option<Doubt> {
        let found = self.models.get(model)?;
        let (&sequence, LostMove { reason, .. }) = found.doubt(alias)?;
        let before = found.aliases.get(alias).map_or(0, |target| target.version);
        let (model, alias) = (model.to_owned(), alias.to_owned());
        Some(Doubt { model, alias, sequence, reason: reason.clone(), before })
    }

    /// The aliases that are known by name and can't be told.
    pub(crate) fn doubts(&self) -> Vec<Doubt> {
        let named = self.models.iter().flat_map(|(name, model)| {
            let lost = model.lost.values().filter_map(|lost| lost.alias.as_ref());
            let aliases: BTreeSet<&String> = model.aliases.keys().chain(lost).collect();
            aliases.into_iter().map(move |alias| (name, alias))
        });
        named.filter_map(|(model, alias)| self.doubt(model, alias)).collect()
    }

    /// May the alias ever have pointed to this version? A lost move before the one that counts may have been it.
    pub(crate) fn may_have_moved(&self, model: &str, alias: &str, version: u64) -> bool {
        self.models.get(model).is_some_and(|model| {
            let known = model.aliases.get(alias).map_or(0, |target| target.sequence);
            model.moved.contains(&(alias.to_owned(), version))
                || model.lost.range(..known).any(|(_, lost)| lost.may_be_of(alias))
        })
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
        VersionView { version: Arc::clone(version), aliases: self.told().filter_map(points_here).collect() }
    }

    fn summary(&self, name: &str) -> ModelView {
        let aliases = self.told().map(|(alias, target)| target.view(name, alias)).collect();
        ModelView { model: name.to_owned(), versions: self.versions.len(), aliases }
    }

    /// The aliases that can be told.
    fn told(&self) -> impl Iterator<Item = (&String, &Target)> {
        self.aliases.iter().filter(|(alias, _)| self.doubt(alias).is_none())
    }

    /// The last lost move that may have been the alias's, unless it moved after that.
    fn doubt(&self, alias: &str) -> Option<(&u64, &LostMove)> {
        let known = self.aliases.get(alias).map_or(0, |target| target.sequence);
        self.lost.range(known..).rfind(|(_, lost)| lost.may_be_of(alias))
    }
}

impl LostMove {
    fn may_be_of(&self, alias: &str) -> bool {
        self.alias.as_deref().is_none_or(|name| name == alias)
    }
}

impl Target {
    fn view(self, model: &str, alias: &str) -> AliasView {
        let Self { version, sequence } = self;
        AliasView { model: model.to_owned(), alias: alias.to_owned(), version, sequence }
    }
}

//! Who has which page.

use std::collections::{BTreeSet, HashMap};

use super::{CacheUse, PAGE_TOKENS};

/// Number of a page.
type Page = u32;

/// What a full page holds, exactly: whose state it is, the page before it, and its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Content {
    /// State depends on the adapter that computed it.
    owner: u64,
    /// The page before it. It stays as long as this one does, so its number means one content.
    parent: Option<Page>,
    tokens: [u32; PAGE_TOKENS],
}

#[derive(Debug, Default)]
struct Slot {
    /// Sequences that have the page. Who has a page has those before it, too.
    holders: u32,
    /// Known pages that come after it.
    children: u32,
    /// Set once the page is full and known to others.
    content: Option<Content>,
    /// When it was last let go.
    used: u64,
}

/// A sequence's pages, in order, and how many tokens they hold.
#[derive(Debug, Default)]
pub(crate) struct PageTable {
    owner: u64,
    pages: Vec<Page>,
    /// Tokens whose state is computed.
    tokens: Vec<u32>,
    /// Pages from the first one on that others know.
    known: usize,
}

impl PageTable {
    /// An empty table; `owner` tells states of different adapters apart.
    pub(crate) fn new(owner: u64) -> Self {
        Self { owner, ..Self::default() }
    }

    /// Tokens whose state is there.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn pages(&self) -> &[Page] {
        &self.pages
    }
}

/// All pages.
#[derive(Debug)]
pub(crate) struct Pages {
    limit: usize,
    slots: Vec<Slot>,
    free: Vec<Page>,
    known: HashMap<Content, Page>,
    /// Known pages that no sequence has.
    idle: usize,
    /// Those of them that no known page comes after, the one unused for longest first.
    leaves: BTreeSet<(u64, Page)>,
    clock: u64,
}

impl Pages {
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.min(Page::MAX as usize);
        Self {
            limit,
            slots: Vec::new(),
            free: Vec::new(),
            known: HashMap::new(),
            idle: 0,
            leaves: BTreeSet::new(),
            clock: 0,
        }
    }

    pub(crate) fn usage(&self) -> CacheUse {
        CacheUse { limit: self.limit, used: self.slots.len() - self.free.len(), idle: self.idle }
    }

    /// Gives an empty table the known pages that begin as `tokens` does. The last token is always left to compute: its row
    /// says what comes next.
    pub(crate) fn attach(&mut self, table: &mut PageTable, tokens: &[u32]) {
        debug_assert!(table.pages.is_empty());
        table.pages = self.beginning(table.owner, tokens);
        table.pages.iter().for_each(|page| self.retain(*page));
        table.tokens.extend_from_slice(&tokens[..table.pages.len() * PAGE_TOKENS]);
        table.known = table.pages.len();
    }

    /// How many of the pages that [`Self::attach`] would give are some sequence's now.
    pub(crate) fn held(&self, owner: u64, tokens: &[u32]) -> usize {
        self.beginning(owner, tokens).iter().filter(|page| self.slots[**page as usize].holders > 0).count()
    }

    fn beginning(&self, owner: u64, tokens: &[u32]) -> Vec<Page> {
        let most = tokens.len().saturating_sub(1) / PAGE_TOKENS;
        let mut pages: Vec<Page> = Vec::new();
        for chunk in tokens.as_chunks::<PAGE_TOKENS>().0.iter().take(most) {
            let content = Content { owner, parent: pages.last().copied(), tokens: *chunk };
            let Some(&page) = self.known.get(&content) else { break };
            pages.push(page);
        }
        pages
    }

    /// Adds empty pages to a table; false, and nothing is added, if there are not so many.
    pub(crate) fn extend(&mut self, table: &mut PageTable, count: usize) -> bool {
        let before = table.pages.len();
        for _ in 0..count {
            let Some(page) = self.take() else {
                table.pages.drain(before..).for_each(|page| self.let_go(page));
                return false;
            };
            table.pages.push(page);
        }
        true
    }

    /// Gives a table, whose next token has room, a page more if there is not room for a page of tokens behind that, and a page to
    /// be had.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn extend_ahead(&mut self, table: &mut PageTable) {
        if table.pages.len() * PAGE_TOKENS <= table.len() + PAGE_TOKENS {
            self.extend(table, 1);
        }
    }

    /// Notes that the rows of these tokens are computed, and makes pages that are full now known.
    pub(crate) fn advance(&mut self, table: &mut PageTable, tokens: &[u32]) {
        table.tokens.extend_from_slice(tokens);
        let full = table.tokens.as_chunks::<PAGE_TOKENS>().0;
        while let Some(tokens) = full.get(table.known) {
            let parent = table.known.checked_sub(1).map(|before| table.pages[before]);
            let content = Content { owner: table.owner, parent, tokens: *tokens };
            // Somebody else computed the same meanwhile: what follows stays this sequence's own.
            if self.known.contains_key(&content) {
                break;
            }
            let page = table.pages[table.known];
            if let Some(parent) = parent {
                self.slots[parent as usize].children += 1;
            }
            self.slots[page as usize].content = Some(content.clone());
            self.known.insert(content, page);
            table.known += 1;
        }
    }

    /// Takes all pages of a table back.
    pub(crate) fn release(&mut self, table: &mut PageTable) {
        for page in std::mem::take(&mut table.pages).into_iter().rev() {
            self.let_go(page);
        }
        table.tokens.clear();
        table.known = 0;
    }

    fn retain(&mut self, page: Page) {
        let slot = &mut self.slots[page as usize];
        if slot.holders == 0 {
            self.idle -= 1;
            self.leaves.remove(&(slot.used, page));
        }
        slot.holders += 1;
    }

    fn let_go(&mut self, page: Page) {
        let slot = &mut self.slots[page as usize];
        slot.holders -= 1;
        if slot.holders > 0 {
            return;
        }
        if slot.content.is_none() {
            self.free.push(page);
            return;
        }
        self.clock += 1;
        slot.used = self.clock;
        self.idle += 1;
        if slot.children == 0 {
            self.leaves.insert((slot.used, page));
        }
    }

    /// A page with one holder: a free one, a new one, or the one that was idle for longest.
    fn take(&mut self) -> Option<Page> {
        if self.free.is_empty() && self.slots.len() >= self.limit {
            self.forget_oldest();
        }
        let page = match self.free.pop() {
            Some(page) => page,
            None if self.slots.len() < self.limit => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as Page
            }
            None => return None,
        };
        self.slots[page as usize].holders = 1;
        Some(page)
    }

    fn forget_oldest(&mut self) {
        let Some((_, page)) = self.leaves.pop_first() else { return };
        self.idle -= 1;
        self.free.push(page);
        let Some(content) = self.slots[page as usize].content.take() else { return };
        self.known.remove(&content);
        let Some(parent) = content.parent else { return };
        let slot = &mut self.slots[parent as usize];
        slot.children -= 1;
        if slot.children == 0 && slot.holders == 0 {
            self.leaves.insert((slot.used, parent));
        }
    }
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;

//! Adapters side by side in one pool, so that rows of one batch are each adapted by their own in one launch.

use burn::tensor::{DType, Int, Tensor};

use super::Array;
use super::decode::{DECODE, Inputs};
use super::launch::Kernel;
use crate::config::{ModelConfig, Module};
use crate::device::Device;
use crate::model::Adapter;

/// Slots that a pool grows to before it gives one adapter's to another, though fewer are asked for at once.
const KEPT: usize = 8;

/// Ranks that a product takes at once.
const RANKS_STEP: usize = 16;
/// Largest rank for which x·Aᵀ of a row has room in a block.
const MOST_RANKS: usize = 448;

/// Where factors lie, in bf16 values. An adapter has a slot; in it all modules follow each other, block by block, A before B, with
/// room for the largest rank: A's rows beyond the rank are not there, B's columns are zeros.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    /// bf16 `[slots · slot]`.
    pub(crate) pool: Array,
    pub(crate) slot: usize,
    /// Room for the rank of each: that of the largest, rounded up.
    pub(crate) ranks: usize,
    /// Where A and B of each block's modules begin in a slot.
    places: Vec<[[usize; 2]; 7]>,
}

/// The adapters of a recorded step.
#[derive(Debug)]
pub(crate) struct Adapted {
    pub(crate) factors: Factors,
    /// Where blocks tell each other `x·Aᵀ`, with the step's number: u64 `[products, SPLITS · rows · 3 · ranks]`. No other step's.
    pub(super) told: Array,
}

impl Adapted {
    /// Blocks that share the first factors of a tile, at most.
    pub(super) const SPLITS: usize = 4;

    /// For so many products of so many rows.
    pub(crate) fn new(factors: Factors, rows: usize, products: usize) -> Option<Self> {
        let words = products * Self::SPLITS * rows * 3 * factors.ranks * 2;
        let told = Array::of_whole(&Tensor::<1, Int>::zeros([words], (&factors.pool.device(), DType::I32)))?;
        Some(Self { factors, told })
    }
}

/// What adds `s·(x·Aᵀ)·Bᵀ` of each row's own adapter to the products of modules that share `x`.
#[derive(Debug)]
pub(crate) struct Expanded<'a> {
    /// Which adapter a row has.
    pub(crate) inputs: &'a Inputs,
    pub(crate) adapted: &'a Adapted,
    /// Where A and B of each module begin in a slot.
    pub(crate) places: Vec<[usize; 2]>,
    /// Which of the step's products these are.
    pub(crate) product: usize,
}

impl Factors {
    /// Where A and B of a block's modules begin.
    pub(crate) fn places(&self, layer: usize, modules: &[Module]) -> Vec<[usize; 2]> {
        modules.iter().map(|module| self.places[layer][module.index()]).collect()
    }
}

/// The adapters that a model's batches use.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    factors: Option<Factors>,
    /// Whose each slot is, by [`Adapter::id`], and when it was last asked for.
    slots: Vec<Option<(u64, u64)>>,
    now: u64,
    state: State,
}

/// Which pool it is, and how often an adapter was brought into one. What was recorded holds as long as `pool` does, and what is
/// known of the factors in a slot as long as both do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Never 0 where there are factors.
    pub(crate) pool: u64,
    filled: u64,
}

/// An adapter that is in the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) slot: usize,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

impl Pool {
    /// What must be the same for what was recorded or begun to hold.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Where the adapters lie, if there are any.
    pub(crate) fn factors(&self) -> Option<&Factors> {
        self.factors.as_ref()
    }

    /// Brings adapters into the pool, each in a slot of its own. `None` if they can't be read by the kernels.
    pub(crate) fn place(&mut self, wanted: &[&Adapter], config: &ModelConfig, device: &Device) -> Option<Vec<Placed>> {
        self.now += 1;
        let ids: Vec<u64> = wanted.iter().map(|adapter| adapter.id()).collect();
        let mut distinct = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let rank = wanted.iter().map(|adapter| adapter.config().r).max()?;
        let ranks =
            self.factors.as_ref().map_or(RANKS_STEP, |factors| factors.ranks).max(rank.next_multiple_of(RANKS_STEP));
        if ranks > MOST_RANKS {
            return None;
        }
        let unknown = distinct.iter().filter(|id| self.slot_of(**id).is_none()).count();
        let free = self.slots.iter().filter(|slot| slot.is_none()).count();
        let short = unknown > free && (self.slots.len() < KEPT || distinct.len() > self.slots.len());
        if short || self.factors.as_ref().is_none_or(|factors| factors.ranks < ranks) {
            let count = (self.slots.len() - free + unknown).min(KEPT.max(distinct.len())).next_power_of_two();
            self.factors = Some(Factors::new(count.max(self.slots.len()), ranks, config, device)?);
            self.slots = vec![None; count.max(self.slots.len())];
            self.state.pool += 1;
        }
        let mut placed = Vec::with_capacity(wanted.len());
        for (adapter, id) in wanted.iter().zip(&ids) {
            let slot = match self.slot_of(*id) {
                Some(slot) => slot,
                None => {
                    let in_use = |slot: &Option<(u64, u64)>| slot.is_some_and(|(id, _)| distinct.contains(&id));
                    let oldest = |at: &usize| self.slots[*at].map_or(0, |(_, used)| used);
                    let slot = (0..self.slots.len()).filter(|at| !in_use(&self.slots[*at])).min_by_key(oldest)?;
                    // Whoever had the slot has it no more, also if this one can't be brought there.
                    self.slots[slot] = None;
                    self.state.filled += 1;
                    self.factors.as_ref()?.fill(slot, adapter, config)?;
                    slot
                }
            };
            self.slots[slot] = Some((*id, self.now));
            placed.push(Placed { slot, rank: adapter.config().r, scale: adapter.config().scale() });
        }
        Some(placed)
    }

    fn slot_of(&self, id: u64) -> Option<usize> {
        self.slots.iter().position(|slot| slot.is_some_and(|(of, _)| of == id))
    }
}

impl Factors {
    fn new(slots: usize, ranks: usize, config: &ModelConfig, device: &Device) -> Option<Self> {
        let mut slot = 0;
        let mut place = |width: usize| {
            slot += width * ranks;
            slot - width * ranks
        };
        let mut places = Vec::with_capacity(config.layers());
        for _ in 0..config.layers() {
            places.push(Module::ALL.map(|module| {
                let [output, input] = config.linear_shape(module);
                [place(input), place(output)]
            }));
        }
        let pool = Array::half(&device.zeros([slots * slot]))?;
        Some(Self { pool, slot, ranks, places })
    }

    /// Copies an adapter into a slot; modules that it leaves alone get zeros.
    fn fill(&self, slot: usize, adapter: &Adapter, config: &ModelConfig) -> Option<()> {
        let kernel = Kernel::new(&DECODE, "store_factor", &[], 256, 0);
        for (layer, places) in self.places.iter().enumerate() {
            for module in Module::ALL {
                let [output, input] = config.linear_shape(module);
                let pair = adapter.pair(layer, module);
                let rank = adapter.config().r;
                // Rows, their width where they come from, and their room.
                let shapes = [[rank, input, input], [output, rank, self.ranks]];
                for (which, ([rows, width, room], place)) in shapes.into_iter().zip(places[module.index()]).enumerate()
                {
                    let factor = pair.map(|pair| Array::of(if which == 0 { &pair.a } else { &pair.b }));
                    let (factor, width) = match factor {
                        Some(factor) => (factor?, width),
                        None => (self.pool.clone(), 0),
                    };
                    let words = [rows, width, room, slot * self.slot + place].map(|word| word as u64);
                    kernel.launch([(rows * room).div_ceil(256), 1, 1], &[&factor, &self.pool], &words);
                }
            }
        }
        Some(())
    }
}

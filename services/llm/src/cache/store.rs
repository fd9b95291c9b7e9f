//! Rows of keys and values, page by page.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};

use super::{PAGE_TOKENS, PageTable};
use crate::device::BurnDevice;
#[cfg(feature = "cuda")]
use crate::generate::Next;
use crate::model::Decoder;
#[cfg(feature = "cuda")]
use crate::model::{Speaking, Steps};
use crate::ops::attention::{self, Heads};
#[cfg(feature = "cuda")]
use crate::ops::cuda::{self, Array, paged::Plan};
use crate::ops::paged::{self, Row};
use crate::ops::{tensor, view};

/// Pages that a device's store begins with; it doubles when they are full.
const FIRST_PAGES: usize = 64;

/// Keys and values of all layers.
#[derive(Debug)]
pub(crate) struct Store {
    width: usize,
    /// Most rows of a device's store.
    most: usize,
    layers: Layers,
}

#[derive(Debug)]
enum Layers {
    /// A page's rows `[PAGE_TOKENS, width]`, by page; empty until it is used.
    Host(Vec<[Vec<Vec<f32>>; 2]>),
    /// All pages' rows `[pages · PAGE_TOKENS, width]`.
    Device(Vec<[Tensor<2>; 2]>, BurnDevice),
    /// All pages `[pages, kv · PAGE_TOKENS · dim]`, as kernels read them.
    #[cfg(feature = "cuda")]
    Paged { pools: Vec<[Tensor<2>; 2]>, plan: Option<Box<Plan>>, steps: Option<Box<Steps>>, device: Box<BurnDevice> },
}

impl Store {
    pub(crate) fn new(model: &Decoder, width: usize, limit: usize) -> Self {
        let (layers, device) = (model.config().layers(), model.device());
        let most = limit * PAGE_TOKENS;
        #[cfg(feature = "cuda")]
        if device.halves() && (0..layers).all(|layer| cuda::paged::fits(model.heads(layer))) {
            // All of it from the start: recorded steps write to where it lies.
            let empty = || device.zeros([limit, PAGE_TOKENS * width]);
            let pools = (0..layers).map(|_| [empty(), empty()]).collect();
            let layers = Layers::Paged { pools, plan: None, steps: None, device: Box::new(device.burn.clone()) };
            return Self { width, most, layers };
        }
        let layers = if device.is_host() {
            Layers::Host((0..layers).map(|_| Default::default()).collect())
        } else {
            let empty = || device.zeros([most.min(FIRST_PAGES * PAGE_TOKENS), width]);
            Layers::Device((0..layers).map(|_| [empty(), empty()]).collect(), device.burn.clone())
        };
        Self { width, most, layers }
    }

    /// Prepares what [`Self::attend`] needs of these sequences, the same for all layers.
    pub(crate) fn prepare(&mut self, sequences: &[(&PageTable, Range<usize>)], heads: Heads) {
        #[cfg(not(feature = "cuda"))]
        let _ = (sequences, heads);
        #[cfg(feature = "cuda")]
        if let Layers::Paged { plan, steps, device, .. } = &mut self.layers {
            if let Some(steps) = steps {
                steps.interrupt();
            }
            *plan = Plan::new(sequences, heads, device).map(Box::new);
        }
    }

    /// What comes next in rows of one token each, whose pages are reserved, by a recorded step; `None` if that can't be had.
    #[cfg(feature = "cuda")]
    pub(crate) fn speak(&mut self, model: &Decoder, rows: &[Speaking<'_>]) -> Option<Vec<Next>> {
        match &mut self.layers {
            Layers::Paged { pools, steps, .. } => {
                steps.get_or_insert_with(|| Box::new(Steps::new(model, pools))).run(model, rows)
            }
            _ => None,
        }
    }

    /// True if the next step may be begun before it is asked for.
    #[cfg(feature = "cuda")]
    pub(crate) fn begins_ahead(&self) -> bool {
        matches!(&self.layers, Layers::Paged { steps: Some(steps), .. } if steps.begins_ahead())
    }

    /// Why a GPU's steps are not recorded, as far as that is known.
    pub(crate) fn unrecorded(&self) -> Option<&str> {
        #[cfg(feature = "cuda")]
        if let Layers::Paged { steps: Some(steps), .. } = &self.layers {
            return steps.failure();
        }
        None
    }

    /// Writes the new keys and values of several sequences after those that they have, and gives the attention of their new
    /// queries to all of their own. Rows of a sequence are those of its span; pages for them are reserved.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        sequences: &[(&PageTable, Range<usize>)],
        [q, k, v]: [&Tensor<2>; 3],
        heads: Heads,
    ) -> Tensor<2> {
        let (width, most) = (self.width, self.most);
        match &mut self.layers {
            Layers::Host(layers) => {
                let (shape, device) = (q.dims(), q.device());
                let (Some(q), Some(k), Some(v)) = (view(q), view(k), view(v)) else {
                    unreachable!("the device is the host")
                };
                let [keys, values] = &mut layers[layer];
                for (table, span) in sequences {
                    write_pages(keys, table, &k.slice()[span.start * width..span.end * width], width);
                    write_pages(values, table, &v.slice()[span.start * width..span.end * width], width);
                }
                let pages: Vec<_> = sequences.iter().map(|(table, _)| (own(keys, table), own(values, table))).collect();
                let rows = sequences.iter().zip(&pages).flat_map(|((table, span), (keys, values))| {
                    (table.len() + 1..=table.len() + span.len()).map(|end| Row { keys, values, end })
                });
                let out = paged::attend(q.slice(), &rows.collect::<Vec<_>>(), heads);
                tensor(out, shape, &device)
            }
            #[cfg(feature = "cuda")]
            Layers::Paged { pools, plan, .. } => {
                let [keys, values] = &pools[layer];
                let out = Array::half(keys).zip(Array::half(values)).zip(plan.as_deref());
                let out = out
                    .and_then(|((keys, values), plan)| cuda::paged::attend([q, k, v], [&keys, &values], plan, heads));
                match out {
                    Some(out) => out,
                    None => unreachable!("prepared, and all of it in bf16 on one GPU"),
                }
            }
            Layers::Device(layers, device) => {
                let outputs = sequences.iter().map(|(table, span)| {
                    let rows = |t: &Tensor<2>| t.clone().slice([span.clone()]);
                    for (slot, rows) in layers[layer].iter_mut().zip([rows(k), rows(v)]) {
                        write_rows(slot, table, rows, most, device);
                    }
                    let places = places(table, table.len() + span.len());
                    let count = places.len();
                    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [count]), &*device);
                    let [k, v] = layers[layer].clone().map(|whole| whole.select(0, places.clone()));
                    attention::attend(rows(q), k, v, heads)
                });
                Tensor::cat(outputs.collect(), 0)
            }
        }
    }
}

/// Writes rows of a sequence on the host.
fn write_pages(pages: &mut Vec<Vec<f32>>, table: &PageTable, rows: &[f32], width: usize) {
    for (at, row) in (table.len()..).zip(rows.chunks_exact(width)) {
        let page = table.pages()[at / PAGE_TOKENS] as usize;
        if pages.len() <= page {
            pages.resize_with(page + 1, Vec::new);
        }
        let page = &mut pages[page];
        if page.is_empty() {
            page.resize(PAGE_TOKENS * width, 0.0);
        }
        page[at % PAGE_TOKENS * width..][..width].copy_from_slice(row);
    }
}

/// Writes rows of a sequence on a device.
fn write_rows(slot: &mut Tensor<2>, table: &PageTable, rows: Tensor<2>, most: usize, device: &BurnDevice) {
    let mut whole = grown(slot, table, most, device);
    let width = whole.dims()[1];
    let count = rows.dims()[0];
    // Rows of one page lie side by side.
    let mut done = 0;
    while done < count {
        let at = table.len() + done;
        let rest = (PAGE_TOKENS - at % PAGE_TOKENS).min(count - done);
        let start = table.pages()[at / PAGE_TOKENS] as usize * PAGE_TOKENS + at % PAGE_TOKENS;
        let part = rows.clone().slice([done..done + rest]);
        whole = whole.slice_assign([start..start + rest, 0..width], part);
        done += rest;
    }
    *slot = whole;
}

/// Rows of a device's store that hold a sequence's first tokens.
fn places(table: &PageTable, length: usize) -> Vec<i64> {
    let place = |at: usize| i64::from(table.pages()[at / PAGE_TOKENS]) * PAGE_TOKENS as i64 + (at % PAGE_TOKENS) as i64;
    (0..length).map(place).collect()
}

/// A table's pages, in order.
fn own<'a>(pages: &'a [Vec<f32>], table: &PageTable) -> Vec<&'a [f32]> {
    table.pages().iter().filter_map(|page| pages.get(*page as usize)).map(Vec::as_slice).collect()
}

/// Takes a layer's rows out of their slot, as many as the table's pages need.
fn grown(slot: &mut Tensor<2>, table: &PageTable, most: usize, device: &BurnDevice) -> Tensor<2> {
    let needed = table.pages().iter().max().map_or(0, |page| *page as usize + 1) * PAGE_TOKENS;
    let whole = std::mem::replace(slot, Tensor::zeros([1, 1], device));
    let [there, width] = whole.dims();
    if there >= needed {
        return whole;
    }
    let more = needed.max(2 * there).min(most.max(needed)) - there;
    Tensor::cat(vec![whole.clone(), Tensor::zeros([more, width], (device, whole.dtype()))], 0)
}

//! Rows of keys and values, page by page.

use burn::tensor::{Int, Tensor, TensorData};

use super::{PAGE_TOKENS, PageTable};
use crate::device::{BurnDevice, Device};
use crate::ops::attention::{self, Heads};
use crate::ops::{paged, tensor, view};

/// Pages that a device's store begins with; it doubles when they are full.
const FIRST_PAGES: usize = 64;

/// Keys and values of all layers.
#[derive(Debug)]
pub(crate) struct Store {
    width: usize,
    layers: Layers,
}

#[derive(Debug)]
enum Layers {
    /// A page's rows `[PAGE_TOKENS, width]`, by page; empty until it is used.
    Host(Vec<[Vec<Vec<f32>>; 2]>),
    /// All pages' rows `[pages · PAGE_TOKENS, width]`.
    Device(Vec<[Tensor<2>; 2]>, BurnDevice),
}

impl Store {
    pub(crate) fn new(layers: usize, width: usize, device: &Device) -> Self {
        let layers = if device.is_host() {
            Layers::Host((0..layers).map(|_| Default::default()).collect())
        } else {
            let empty = || Tensor::zeros([FIRST_PAGES * PAGE_TOKENS, width], &device.burn);
            Layers::Device((0..layers).map(|_| [empty(), empty()]).collect(), device.burn.clone())
        };
        Self { width, layers }
    }

    /// Writes a layer's new rows of a sequence after those that it has; their pages are reserved.
    pub(crate) fn write(&mut self, layer: usize, table: &PageTable, rows: [&Tensor<2>; 2]) {
        let width = self.width;
        let count = rows[0].dims()[0];
        for (which, rows) in rows.into_iter().enumerate() {
            match &mut self.layers {
                Layers::Host(layers) => {
                    let Some(values) = view(rows) else { unreachable!("the device is the host") };
                    for (at, row) in (table.len()..).zip(values.slice().chunks_exact(width)) {
                        let page = table.pages()[at / PAGE_TOKENS] as usize;
                        let pages = &mut layers[layer][which];
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
                Layers::Device(layers, device) => {
                    let slot = &mut layers[layer][which];
                    let mut whole = grown(slot, table, width, device);
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
            }
        }
    }

    /// Attention of a sequence's new rows `q`, whose keys and values are written, to all of its rows.
    pub(crate) fn attend(&self, layer: usize, table: &PageTable, q: Tensor<2>, heads: Heads) -> Tensor<2> {
        let rows = q.dims()[0];
        let length = table.len() + rows;
        match &self.layers {
            // However many rows come at once, each is computed alike: an answer does not depend on what it shares a step with.
            Layers::Host(layers) => {
                let [keys, values] = &layers[layer];
                let (keys, values) = (own(keys, table), own(values, table));
                let Some(queries) = view(&q) else { unreachable!("the device is the host") };
                let out = paged::attend(queries.slice(), &keys, &values, length, heads);
                tensor(out, q.dims(), &q.device())
            }
            Layers::Device(layers, device) => {
                let rows = (0..length).map(|at| {
                    i64::from(table.pages()[at / PAGE_TOKENS]) * PAGE_TOKENS as i64 + (at % PAGE_TOKENS) as i64
                });
                let rows = Tensor::<1, Int>::from_data(TensorData::new(rows.collect::<Vec<_>>(), [length]), device);
                let [k, v] = layers[layer].clone().map(|whole| whole.select(0, rows.clone()));
                attention::attend(q, k, v, heads)
            }
        }
    }
}

/// A table's pages, in order.
fn own<'a>(pages: &'a [Vec<f32>], table: &PageTable) -> Vec<&'a [f32]> {
    table.pages().iter().filter_map(|page| pages.get(*page as usize)).map(Vec::as_slice).collect()
}

/// Takes a layer's rows out of their slot, as many as the table's pages need.
fn grown(slot: &mut Tensor<2>, table: &PageTable, width: usize, device: &BurnDevice) -> Tensor<2> {
    let needed = table.pages().iter().max().map_or(0, |page| *page as usize + 1) * PAGE_TOKENS;
    let whole = std::mem::replace(slot, Tensor::zeros([1, 1], device));
    let there = whole.dims()[0];
    if there >= needed {
        return whole;
    }
    let more = needed.next_power_of_two().max(2 * there) - there;
    Tensor::cat(vec![whole, Tensor::zeros([more, width], device)], 0)
}

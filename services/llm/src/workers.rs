//! Parallel work on a CPU: whole items to cores, one thread an item.
//!
//! Splitting one small matrix product over cores costs more than it gains; items side by side scale with the cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// A fixed set of workers.
#[derive(Debug)]
pub(crate) struct Workers {
    // A pool of one thread each: tensor operations split by the size of the pool that they run in. No pools on an
    // accelerator, or where threads can't be had: the caller's thread does the work.
    pools: Vec<ThreadPool>,
}

impl Workers {
    pub(crate) fn new(count: usize) -> Self {
        let pools = if count > 1 { (0..count).map_while(|_| single()).collect() } else { Vec::new() };
        Self { pools }
    }

    /// Items that are worked on at once.
    pub(crate) fn count(&self) -> usize {
        self.pools.len().max(1)
    }

    /// Applies `work` to every item; results are in the items' order.
    pub(crate) fn map<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        if self.pools.len() < 2 || items.len() < 2 {
            return items.iter().map(work).collect();
        }
        let next = AtomicUsize::new(0);
        let slots: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
        let run = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index) else { break };
                let result = work(item);
                if let Ok(mut slot) = slots[index].lock() {
                    *slot = Some(result);
                }
            }
        };
        std::thread::scope(|scope| {
            for pool in &self.pools {
                scope.spawn(|| pool.install(run));
            }
        });
        slots.into_iter().filter_map(|slot| slot.into_inner().ok().flatten()).collect()
    }
}

fn single() -> Option<ThreadPool> {
    ThreadPoolBuilder::new().num_threads(1).build().ok()
}

#[cfg(test)]
mod tests {
    use super::Workers;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(Workers::new(3).map(&items, |n| n * n), items.iter().map(|n| n * n).collect::<Vec<_>>());
    }
}

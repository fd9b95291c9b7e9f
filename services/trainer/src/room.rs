//! How a job's steps go into the memory of its device.

use firn_llm::{
    config::ModelConfig,
    device::Device,
    train::{Fit, Layout, MemoryEstimate},
};

use crate::{error::WorkError, plan::Plan, spec::Spec};

/// What a job's steps take, and what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) estimate: MemoryEstimate,
    /// Bytes; `None` if that is not known.
    pub(crate) free: Option<u64>,
    /// The most blocks whose activations exist at once.
    most: usize,
    wishes: Wishes,
}

/// What may be done for want of memory.
#[derive(Clone, Copy, Debug)]
struct Wishes {
    /// Compute fewer blocks at once.
    fewer: bool,
    /// Compute layers again in the backward.
    again: bool,
}

impl Room {
    pub(crate) fn new(spec: &Spec, model: &ModelConfig, device: &Device, plan: &Plan) -> Result<Self, WorkError> {
        let lora = spec.lora.as_ref().map(|lora| lora.config()).transpose()?;
        let (hyper, block) = (&spec.hyperparameters, plan.block_tokens());
        let layout = Layout::new(device, model, lora.is_some());
        let estimate = MemoryEstimate::new(model, lora.as_ref(), spec.quantization()?, layout, block, plan.longest());
        // On an accelerator no more than a batch: that is what accumulation is for.
        let batch = if device.is_host() { plan.batch_size() } else { hyper.batch_size as usize };
        let most = layout.side_by_side(device, block, batch, spec.preference().is_some());
        let again = !hyper.keep_activations && (hyper.fit_memory || !device.is_host());
        Ok(Self { estimate, free: device.free_memory(), most, wishes: Wishes { fewer: hyper.fit_memory, again } })
    }

    /// The same with weights that are loaded already.
    pub(crate) fn loaded(mut self) -> Self {
        self.estimate.weights = 0;
        self
    }

    /// The bytes that the least of all ways takes.
    pub(crate) fn least(&self) -> u64 {
        self.estimate.total(Fit { blocks: 1, recompute: self.wishes.again })
    }

    /// How the steps are computed; `None` if the job asks for what fits, and nothing does.
    pub(crate) fn fit(&self) -> Option<Fit> {
        let Wishes { fewer, again } = self.wishes;
        let all = Fit { blocks: self.most, recompute: false };
        match self.free {
            Some(free) if fewer => self.estimate.fit(self.most, free, again),
            Some(free) => Some(Fit { recompute: again && self.estimate.total(all) > free, ..all }),
            None => Some(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_done_otherwise_only_where_it_may_be() {
        let estimate =
            MemoryEstimate { weights: 100, optimizer: 10, activations: 15, recomputed: 1, besides: 5, joined: false };
        let fit = |free, fewer, again| Room { estimate, free, most: 4, wishes: Wishes { fewer, again } }.fit();
        let way = |blocks, recompute| Some(Fit { blocks, recompute });
        assert_eq!(fit(None, true, true), way(4, false), "nothing is known");
        assert_eq!(fit(Some(190), true, true), way(4, false));
        assert_eq!(fit(Some(189), true, true), way(2, false), "fewer before again: that costs nothing");
        assert_eq!(fit(Some(129), true, true), way(2, true));
        assert_eq!(fit(Some(129), true, false), None);
        assert_eq!(fit(Some(189), false, true), way(4, true));
        assert_eq!(fit(Some(10), false, true), way(4, true), "an estimate alone refuses nothing");
        assert_eq!(fit(Some(10), false, false), way(4, false));
        let room = Room { estimate, free: None, most: 4, wishes: Wishes { fewer: true, again: true } };
        assert_eq!((room.least(), room.loaded().least()), (116, 16));
    }
}

//! How fast a device would train a model, measured on one product of its shape: for a plan before a step runs.

use std::time::{Duration, Instant};

use burn::tensor::{Distribution, Tensor};

use crate::config::ModelConfig;
use crate::device::Device;
use crate::model::{Joint, Linear, Weight};
use crate::ops::to_vec;
use crate::workers::Workers;

/// How long is measured.
const SAMPLE: Duration = Duration::from_millis(200);
/// Rows of the product on a CPU: enough to fill the registers, few enough for a large model on a small machine.
const ROWS: usize = 128;
/// On an accelerator: enough to fill it.
const MANY_ROWS: usize = 8_192;
/// Products between two looks at the clock.
const BURST: u32 = 4;
/// Share of the products' speed that a whole step reaches: attention, norms and the optimiser are slower. Measured on a
/// CPU with models of 3 and of 135 million parameters (0.6), and on an H100 with models of 0.5, 1 and 8 billion (0.43 to
/// 0.65).
const STEP_SHARE: f64 = 0.6;

/// Seconds that a token of training takes, estimated: off by a factor of two at most is what one may hope for.
pub fn seconds_per_token(model: &ModelConfig, adapter: bool, recompute: bool, device: &Device) -> f64 {
    // Two operations a weight forward, two for the gradient of the input, two for that of a weight that is trained, and
    // two for a forward that is computed again.
    let each = 4 + if adapter { 0 } else { 2 } + if recompute { 2 } else { 0 };
    (each * model.parameters()) as f64 / (STEP_SHARE * products_per_second(model, device))
}

/// Operations a second of products of the model's MLP, as its layers compute them, on all workers at once.
fn products_per_second(model: &ModelConfig, device: &Device) -> f64 {
    let rows = if device.is_host() { ROWS } else { MANY_ROWS };
    let random = |shape: [usize; 2]| {
        let values = Tensor::<2>::random(shape, Distribution::Uniform(-1.0, 1.0), &device.burn);
        values.cast(device.dtype())
    };
    let weight = Weight::dense(random([model.intermediate, model.hidden]));
    let (x, layer) = (random([rows, model.hidden]), Linear { weight, bias: None });
    let joint = Joint { layers: [&layer], loras: [None], mask: None };
    let product = || {
        let ([y], _) = joint.forward(&x, None);
        y
    };
    // Work is done in order: one number of the last product says that all are.
    let finish = |last: Tensor<2>| drop(to_vec(last.slice([0..1, 0..1])));
    finish(product());
    let workers = Workers::new(device.workers());
    let began = Instant::now();
    let places: Vec<usize> = (0..workers.count()).collect();
    let counts = workers.map(&places, |_| {
        let mut count = 0u32;
        while began.elapsed() < SAMPLE {
            // Several at once: an accelerator waits for nobody between them.
            let last = (1..BURST).fold(product(), |_, _| product());
            finish(last);
            count += BURST;
        }
        count
    });
    let operations = 2.0 * (rows * model.hidden * model.intermediate) as f64;
    f64::from(counts.iter().sum::<u32>()) * operations / began.elapsed().as_secs_f64()
}

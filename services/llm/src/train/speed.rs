//! How fast a device would train a model, measured on one product of its shape: for a plan before a step runs.

use std::time::{Duration, Instant};

use burn::tensor::{Distribution, Tensor};

use crate::config::ModelConfig;
use crate::device::Device;
use crate::ops::to_vec;
use crate::workers::Workers;

/// How long is measured.
const SAMPLE: Duration = Duration::from_millis(200);
/// Rows of the product: enough to fill the registers, few enough for a large model on a small machine.
const ROWS: usize = 128;
/// Share of the products' speed that a whole step reaches: attention, norms and the optimiser are slower. Measured on a
/// CPU with models of 3 and of 135 million parameters.
const STEP_SHARE: f64 = 0.6;

/// Seconds that a token of training takes, estimated: off by a factor of two at most is what one may hope for.
pub fn seconds_per_token(model: &ModelConfig, adapter: bool, device: &Device) -> f64 {
    // Two operations a weight forward, two for the gradient of the input, and two for that of a weight that is trained.
    let operations = model.parameters() as f64 * if adapter { 4.0 } else { 6.0 };
    operations / (STEP_SHARE * products_per_second(model, device))
}

/// Operations a second of products of the model's MLP, on all workers at once.
fn products_per_second(model: &ModelConfig, device: &Device) -> f64 {
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Uniform(-1.0, 1.0), &device.burn);
    let (x, weight) = (random([ROWS, model.hidden]), random([model.hidden, model.intermediate]));
    let product = || drop(to_vec(x.clone().matmul(weight.clone()).sum()));
    product();
    let workers = Workers::new(device.workers());
    let began = Instant::now();
    let places: Vec<usize> = (0..workers.count()).collect();
    let counts = workers.map(&places, |_| {
        let mut count = 0u32;
        while began.elapsed() < SAMPLE {
            product();
            count += 1;
        }
        count
    });
    let operations = 2.0 * (ROWS * model.hidden * model.intermediate) as f64;
    f64::from(counts.iter().sum::<u32>()) * operations / began.elapsed().as_secs_f64()
}

//! The device that a model computes on, chosen at run time.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Shape, Tensor, TensorData};

pub(crate) use burn::tensor::Device as BurnDevice;

#[cfg(feature = "cuda")]
use crate::kernels::KernelFolder;
use crate::weights::Values;

/// Why a device can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The name is none of those known.
    #[error(
        "unknown device {0:?}: use auto, cpu, cuda:N, cuda:N:f32, cuda:N-M (several GPUs, to train an adapter) or vulkan"
    )]
    Unknown(String),
    /// The machine shows no NVIDIA GPU.
    #[error("{name} is not there: this machine shows no NVIDIA GPU ({}); use --device cpu", GPU_NODES.join(", "))]
    NoGpu {
        /// The device's name.
        name: String,
    },
    /// This binary was built without the device's feature.
    #[error("device {name} is not in this build: build with --features {feature}")]
    NotBuilt {
        /// The device's name.
        name: String,
        /// The Cargo feature that adds it.
        feature: &'static str,
    },
    /// Several GPUs for what computes on one.
    #[error("{name} names several GPUs, which the training of an adapter alone uses: name one here, as in {one}")]
    Several {
        /// The devices' name.
        name: String,
        /// The first of them.
        one: String,
    },
}

/// What a model's weights and activations are kept in on a GPU. Sums, norms, losses and what is trained are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// bfloat16: eight bits of mantissa. What tensor cores are made for.
    #[default]
    Bf16,
    /// IEEE single.
    F32,
}

/// A device by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    /// CUDA if this build and this machine have it, otherwise the CPU.
    #[default]
    Auto,
    /// Burn's Flex backend.
    Cpu,
    /// NVIDIA GPUs by index, from the first to the last.
    Cuda {
        /// The one that results come from.
        first: usize,
        /// At least the first; others are for the training of an adapter alone.
        last: usize,
        /// Of weights and activations.
        precision: Precision,
    },
    /// The default Vulkan device.
    Vulkan,
}

impl DeviceSpec {
    /// The first of several GPUs, or the device itself.
    #[must_use]
    pub fn first(self) -> Self {
        match self {
            Self::Cuda { first, precision, .. } => Self::Cuda { first, last: first, precision },
            other => other,
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda { first: 0, last: 0, precision: Precision::Bf16 }),
            "vulkan" => Ok(Self::Vulkan),
            other => {
                let gpu = other.strip_prefix("cuda:").and_then(|rest| {
                    let (range, precision) = match rest.strip_suffix(":f32") {
                        Some(range) => (range, Precision::F32),
                        None => (rest, Precision::Bf16),
                    };
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                    (first <= last && last - first < MOST_GPUS).then_some(Self::Cuda { first, last, precision })
                });
                gpu.ok_or_else(|| DeviceError::Unknown(other.to_owned()))
            }
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { first, last, precision } => {
                write!(f, "cuda:{first}")?;
                if last > first {
                    write!(f, "-{last}")?;
                }
                f.write_str(if *precision == Precision::F32 { ":f32" } else { "" })
            }
            Self::Vulkan => f.write_str("vulkan"),
        }
    }
}

/// GPUs of one machine, at most.
const MOST_GPUS: usize = 16;
/// Where a driver shows its GPUs: on Linux, and on Linux within Windows.
const GPU_NODES: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];

/// Asked before CUDA is, which ends the process where there is no driver.
fn has_nvidia_gpu() -> bool {
    GPU_NODES.iter().any(|node| std::path::Path::new(node).exists())
}

/// A device that is ready to compute.
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) burn: BurnDevice,
    /// More of the same kind, which compute beside it.
    others: Vec<BurnDevice>,
    workers: usize,
    /// It computes in the machine's own memory.
    on_host: bool,
    /// Index of the NVIDIA GPU that it is.
    #[cfg(feature = "cuda")]
    gpu: Option<usize>,
    /// Of weights and activations.
    dtype: DType,
}

impl Device {
    /// Opens a device. Kernels that a GPU of NVIDIA's needs are kept, compiled, in the folder that the variable
    /// `FIRN_KERNEL_CACHE` names, by default `firn/kernels` in the user's cache folder; with an empty one they are not.
    ///
    /// # Errors
    /// This build does not have it.
    pub fn open(spec: DeviceSpec) -> Result<Self, DeviceError> {
        match spec {
            DeviceSpec::Auto if cfg!(feature = "cuda") && has_nvidia_gpu() => {
                Self::open(DeviceSpec::Cuda { first: 0, last: 0, precision: Precision::Bf16 })
            }
            #[cfg(feature = "cuda")]
            DeviceSpec::Cuda { .. } if !has_nvidia_gpu() => Err(DeviceError::NoGpu { name: spec.to_string() }),
            DeviceSpec::Auto | DeviceSpec::Cpu => Ok(Self::cpu()),
            #[cfg(feature = "cuda")]
            DeviceSpec::Cuda { first, last, precision } => {
                if let Some(folder) = KernelFolder::from_environment(|name| std::env::var_os(name)) {
                    cubecl_cuda::keep_kernels(Box::new(folder));
                }
                let dtype = if precision == Precision::Bf16 { DType::BF16 } else { DType::F32 };
                let others = (first + 1..=last).map(BurnDevice::cuda).collect();
                Ok(Self { burn: BurnDevice::cuda(first), others, workers: 1, on_host: false, gpu: Some(first), dtype })
            }
            #[cfg(not(feature = "cuda"))]
            DeviceSpec::Cuda { .. } => Err(DeviceError::NotBuilt { name: spec.to_string(), feature: "cuda" }),
            #[cfg(feature = "vulkan")]
            DeviceSpec::Vulkan => {
                let burn = BurnDevice::wgpu(burn::tensor::DeviceKind::DefaultDevice);
                Ok(Self {
                    burn,
                    others: Vec::new(),
                    workers: 1,
                    on_host: false,
                    #[cfg(feature = "cuda")]
                    gpu: None,
                    dtype: DType::F32,
                })
            }
            #[cfg(not(feature = "vulkan"))]
            DeviceSpec::Vulkan => Err(DeviceError::NotBuilt { name: spec.to_string(), feature: "vulkan" }),
        }
    }

    /// Opens a device for what computes on one.
    ///
    /// # Errors
    /// The name is that of several GPUs, or this build does not have it.
    pub fn open_one(spec: DeviceSpec) -> Result<Self, DeviceError> {
        if spec.first() != spec {
            return Err(DeviceError::Several { name: spec.to_string(), one: spec.first().to_string() });
        }
        Self::open(spec)
    }

    /// The CPU, with a worker for each core.
    pub fn cpu() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            burn: BurnDevice::flex(),
            others: Vec::new(),
            workers,
            on_host: true,
            #[cfg(feature = "cuda")]
            gpu: None,
            dtype: DType::F32,
        }
    }

    /// A CPU as if it were several devices, which compute beside each other as GPUs do.
    #[cfg(test)]
    pub(crate) fn cpus(count: usize) -> Self {
        Self { workers: 1, others: vec![BurnDevice::flex(); count - 1], ..Self::cpu() }
    }

    /// The same device with all in f32: where all weights are trained, small updates would vanish in bf16.
    #[must_use]
    pub fn in_full_precision(self) -> Self {
        Self { dtype: DType::F32, ..self }
    }

    /// The devices that compute beside this one, each by itself.
    pub(crate) fn others(&self) -> Vec<Self> {
        self.others.iter().map(|burn| Self { burn: burn.clone(), others: Vec::new(), ..self.clone() }).collect()
    }

    /// Weights and activations are f32.
    pub fn is_full_precision(&self) -> bool {
        self.dtype == DType::F32
    }

    /// A weight in the device's precision.
    pub(crate) fn weight<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        let data = TensorData::new(values, shape);
        // Halved before it travels to the device.
        Tensor::from_data(data.convert_dtype(self.dtype), (&self.burn, self.dtype))
    }

    /// The same of values as a checkpoint has them.
    pub(crate) fn stored<const D: usize>(&self, values: Values, shape: [usize; D]) -> Tensor<D> {
        match values {
            Values::Bf16(values) if self.dtype == DType::BF16 => {
                Tensor::from_data(TensorData::new(values, shape), (&self.burn, self.dtype))
            }
            other => self.weight(other.into_f32(), shape),
        }
    }

    /// Type of a weight or an activation.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of a weight or an activation.
    pub(crate) fn bytes(&self) -> usize {
        self.dtype.size()
    }

    /// Zeros in the device's precision.
    pub(crate) fn zeros<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::zeros(Shape::new(shape), (&self.burn, self.dtype))
    }

    /// Weights and activations are bf16: kernels for it are there.
    #[cfg(feature = "cuda")]
    pub(crate) fn halves(&self) -> bool {
        self.dtype == DType::BF16
    }

    /// Bytes of an accelerator's memory that this process has taken so far; `None` on a CPU.
    pub fn reserved_memory(&self) -> Option<u64> {
        self.burn.memory_pool_usage().map(|usage| usage.bytes_reserved)
    }

    /// Memory that may still be used, bytes: of an NVIDIA GPU, or of the machine and the container around this process.
    /// `None` if that is not known, as on other accelerators.
    pub fn free_memory(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu {
            let context = cudarc::driver::CudaContext::new(gpu).ok()?;
            let (free, _) = context.mem_get_info().ok()?;
            // What the allocator holds and nothing uses is as good as free.
            let idle = self.burn.memory_pool_usage().map_or(0, |pool| pool.bytes_reserved - pool.bytes_in_use);
            return Some(free as u64 + idle);
        }
        self.on_host.then(free_host_memory).flatten()
    }

    /// True if attention over heads of this width has a kernel, which keeps no scores.
    pub(crate) fn attends_by_kernel(&self, head_dim: usize) -> bool {
        #[cfg(feature = "cuda")]
        let fits = self.halves() && crate::ops::cuda::attention::fits(head_dim);
        #[cfg(not(feature = "cuda"))]
        let fits = {
            let _ = head_dim;
            false
        };
        fits
    }

    /// Tensors lie in the machine's own memory.
    pub fn is_host(&self) -> bool {
        self.on_host
    }

    /// Shards of a batch that compute at once: cores on a CPU, one on an accelerator, which is parallel by itself.
    pub fn workers(&self) -> usize {
        self.workers
    }
}

/// The kernel's estimate of what a new program may take, and what the control group of a container leaves.
fn free_host_memory() -> Option<u64> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1_024;
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map_or(u64::MAX, |(most, used)| most.saturating_sub(used));
    Some(machine.min(group))
}

#[cfg(test)]
mod tests {
    use super::{Device, DeviceError};

    #[test]
    fn what_computes_on_one_gpu_refuses_several() {
        let open = |name: &str| Device::open_one(name.parse().unwrap());
        let error = open("cuda:1-2:f32").unwrap_err();
        assert!(
            matches!(&error, DeviceError::Several { name, one } if name == "cuda:1-2:f32" && one == "cuda:1:f32"),
            "{error}"
        );
        assert!(open("cpu").is_ok());
        assert!(!matches!(open("cuda:1-1"), Err(DeviceError::Several { .. })));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_machine_says_what_is_free() {
        let free = Device::cpu().free_memory().unwrap();
        assert!(free > 1 << 20, "{free} bytes");
    }
}

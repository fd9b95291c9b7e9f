//! Kernels that are CUDA C++ text.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use burn_cubecl::tensor::CubeTensor;
use cubecl::PrecompiledSource;
use cubecl::features::Tma;
use cubecl::ir::metadata::Info;
use cubecl::ir::settings::{Dim3, ExecutionMode, KernelSettings};
use cubecl::ir::{AddressType, ElemType, Scope, UIntKind};
use cubecl::prelude::{CubeCount, CubeKernel, KernelDefinition, KernelId, KernelMetadata};
use cubecl::server::{KernelArguments, MetadataBindingInfo, TensorMapBinding};

use super::Array;

/// A file of kernels.
#[derive(Debug)]
pub(super) struct Source {
    /// Its name, for messages of the compiler.
    pub(super) name: &'static str,
    /// CUDA C++.
    pub(super) text: &'static str,
}

/// A compile-time constant of a kernel.
pub(super) type Define = (&'static str, usize);

/// A kernel of a file with its constants.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    entry: &'static str,
    block: u32,
    text: Arc<str>,
    hash: u64,
}

type Key = (&'static str, &'static str, Vec<Define>, usize);

/// Texts with their constants, made once.
static KERNELS: LazyLock<Mutex<HashMap<Key, Kernel>>> = LazyLock::new(Mutex::default);

impl Kernel {
    /// The kernel `entry` of `source` with these constants, blocks of so many threads, and bytes of dynamic shared memory.
    pub(super) fn new(source: &Source, entry: &'static str, defines: &[Define], block: u32, shared: usize) -> Self {
        let mut kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let mut text = format!("// dynamic shared memory: {shared}\n// {}\n", source.name);
            for (name, value) in defines {
                // Writing to a string can't fail.
                let _ = writeln!(text, "#define {name} {value}");
            }
            text.push_str(source.text);
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            Self { entry, block, text: text.into(), hash: hasher.finish() }
        };
        kernels.entry((source.name, entry, defines.to_vec(), shared)).or_insert_with(make).clone()
    }

    /// Puts the kernel on the stream of its arrays.
    ///
    /// The caller owes that arguments, constants and grid are those that the kernel's comment asks for: it is as unchecked as
    /// any CUDA launch. Nothing comes back but what it writes.
    pub(super) fn launch(&self, grid: [usize; 3], arrays: &[&Array], words: &[u64]) {
        self.launch_mapped(grid, Vec::new(), arrays, words);
    }

    /// The same with tensor maps before the arrays.
    pub(super) fn launch_mapped(
        &self,
        grid: [usize; 3],
        maps: Vec<TensorMapBinding>,
        arrays: &[&Array],
        words: &[u64],
    ) {
        let Some(Array(first)) = arrays.first() else { return };
        let mut arguments = KernelArguments::new().with_tensor_maps(maps);
        for Array(array) in arrays {
            arguments = arguments.with_buffer(array.handle.clone().binding());
        }
        arguments = arguments.with_info(MetadataBindingInfo::new(words.to_vec(), words.len()));
        // A grid beyond 32 bits is refused by the driver.
        let [x, y, z] = grid.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        first.client.launch(Box::new(self.clone()), CubeCount::Static(x, y, z), arguments);
    }
}

impl KernelMetadata for Kernel {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().cube_dim(Dim3 { x: self.block, y: 1, z: 1 }).info((self.entry, self.hash))
    }

    fn address_type(&self) -> ElemType {
        ElemType::UInt(UIntKind::U64)
    }
}

impl CubeKernel for Kernel {
    fn define(&self) -> KernelDefinition {
        let dim = Dim3 { x: self.block, y: 1, z: 1 };
        let settings = KernelSettings::new(dim, ExecutionMode::Unchecked, AddressType::U64);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        let (source, entrypoint_name) = (self.text.to_string(), self.entry.to_owned());
        Some(PrecompiledSource { source, entrypoint_name, lang: "cuda" })
    }
}

/// A real number as a kernel's word.
pub(super) fn real(value: f64) -> u64 {
    value.to_bits()
}

/// Dynamic shared memory that a block may have, bytes.
pub(super) fn shared_limit(Array(CubeTensor { client, .. }): &Array) -> usize {
    client.properties().hardware.max_shared_memory_size
}

/// Multiprocessors of the array's device.
pub(super) fn processors(Array(CubeTensor { client, .. }): &Array) -> usize {
    client.properties().hardware.num_streaming_multiprocessors.map_or(1, |count| count as usize)
}

/// True on Hopper, whose tensor cores `gemm.cu` speaks to: older ones have no bulk copies, newer ones another instruction.
pub(super) fn is_hopper(Array(CubeTensor { client, .. }): &Array) -> bool {
    let tma = &client.properties().features.tma;
    tma.contains(Tma::Base) && !tma.contains(Tma::Im2colWide)
}

//! Link-free stand-in for `cubecl-llvm`: lets `cubecl-cuda` build with its `cpp` (NVRTC) backend
//! and no LLVM download. Every compile through it is an error; it must never be the default.
use cubecl_core::{Compiler, prelude::KernelDefinition};
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::{compiler::CompilationError, kernel::BufferIOAttr};

pub mod nvptx { pub mod ptx_version {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PtxVersion(u32);
    impl PtxVersion { pub fn for_driver(_driver: i32) -> Option<Self> { None } }
    impl core::fmt::Display for PtxVersion {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result { write!(f, "ptx{}", self.0) }
    }
} }
pub mod shared { pub mod lowered_features {
    use cubecl_core::ir::DeviceProperties;
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[allow(dead_code)]
    pub enum GpuTarget { Nvptx { arch: cubecl_core::ir::nvidia::SmArch } }
    pub fn restrict_features(_props: &mut DeviceProperties, _target: GpuTarget) {
        panic!("cubecl-llvm stub: build cubecl-cuda with the `cpp` feature");
    }
} }
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget { #[default] Cpu, Nvptx }
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler { pub target: LlvmTarget }
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    pub cpu_buffer_alignment: Option<u32>,
    pub arch: Option<cubecl_core::ir::amd::GfxArch>,
    pub sm_arch: Option<cubecl_core::ir::nvidia::SmArch>,
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    pub grid_constants: bool,
}
#[derive(Clone, Debug)]
pub struct NvptxModule {
    pub ptx: Vec<core::ffi::c_char>, pub entrypoint: String, pub ir: String,
    pub shared_memory_size: usize, pub io: Vec<BufferIOAttr>,
}
#[derive(Clone)]
pub enum PlironArtifact { Jit(()), NvptxCode(NvptxModule) }
impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result { f.write_str("stub") }
}
impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;
    fn compile(&mut self, _k: KernelDefinition, _o: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic { reason: "cubecl-llvm stub".into(), backtrace: BackTrace::capture() })
    }
    fn extension(&self) -> &'static str { "ll" }
    fn lang_tag(&self) -> &'static str { "llvm" }
}

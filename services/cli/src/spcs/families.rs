//! Instance families of compute pools: what one node gives to containers.

/// A family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Family {
    /// Its name in `CREATE COMPUTE POOL`.
    pub(crate) name: &'static str,
    /// AWS, Azure, GCP, or several where the name is the same.
    pub(crate) cloud: &'static str,
    /// CPUs for containers.
    pub(crate) cpus: f64,
    /// GiB of memory for containers.
    pub(crate) gib: f64,
    /// GPUs.
    pub(crate) gpus: i64,
}

const fn family_of(name: &'static str, cloud: &'static str, cpus: u16, gib: u16, gpus: u8) -> Family {
    Family { name, cloud, cpus: cpus as f64, gib: gib as f64, gpus: gpus as i64 }
}

/// The families whose sizes are published, smallest first within a kind.
pub(crate) const FAMILIES: [Family; 43] = [
    family_of("CPU_X64_XS", "all", 1, 6, 0),
    family_of("CPU_X64_S", "all", 3, 13, 0),
    family_of("CPU_X64_M", "all", 6, 28, 0),
    family_of("CPU_X64_SL", "AWS", 14, 58, 0),
    family_of("CPU_X64_L", "all", 28, 116, 0),
    family_of("HIGHMEM_X64_S", "all", 6, 58, 0),
    family_of("HIGHMEM_X64_M", "all", 28, 240, 0),
    family_of("HIGHMEM_X64_L", "AWS", 124, 984, 0),
    family_of("GEN_X64_G2_2", "AWS, Azure", 1, 6, 0),
    family_of("GEN_X64_G2_4", "AWS, Azure", 3, 13, 0),
    family_of("GEN_X64_G2_8", "AWS, Azure", 6, 28, 0),
    family_of("GEN_X64_G2_32", "AWS, Azure", 28, 116, 0),
    family_of("MEM_X64_G2_8", "AWS, Azure", 6, 58, 0),
    family_of("MEM_X64_G2_32", "AWS, Azure", 28, 240, 0),
    family_of("MEM_X64_G2_64", "AWS, Azure", 60, 492, 0),
    family_of("MEM_X64_G2_192", "AWS", 188, 1436, 0),
    family_of("GPU_NV_XS", "Azure", 3, 26, 1),
    family_of("GPU_NV_S", "AWS", 6, 28, 1),
    family_of("GPU_NV_SM", "Azure", 32, 424, 1),
    family_of("GPU_NV_2M", "Azure", 68, 858, 2),
    family_of("GPU_NV_3M", "Azure", 44, 424, 2),
    family_of("GPU_NV_M", "AWS", 44, 178, 4),
    family_of("GPU_NV_SL", "Azure", 92, 858, 4),
    family_of("GPU_NV_L", "AWS", 92, 1112, 8),
    family_of("GPU_L40S_G1_8", "AWS", 6, 58, 1),
    family_of("GPU_L40S_G1_16", "AWS", 14, 116, 1),
    family_of("GPU_L40S_G1_48", "AWS", 44, 368, 4),
    family_of("GPU_L40S_G1_192", "AWS", 188, 1436, 8),
    family_of("GPU_R6K_G1_8", "AWS", 6, 58, 1),
    family_of("GPU_R6K_G1_16", "AWS", 14, 116, 1),
    family_of("GPU_R6K_G1_32", "AWS", 28, 240, 1),
    family_of("GPU_R6K_G1_48", "AWS", 44, 490, 2),
    family_of("GPU_R6K_G1_96", "AWS", 92, 984, 4),
    family_of("GPU_R6K_G1_192", "AWS", 188, 1843, 8),
    family_of("GPU_GCP_NV_L4_1_24G", "GCP", 6, 28, 1),
    family_of("GPU_GCP_NV_L4_4_24G", "GCP", 44, 178, 4),
    family_of("GPU_A100_G1_12", "GCP", 10, 77, 1),
    family_of("GPU_A100_G1_48", "GCP", 44, 324, 4),
    family_of("GPU_GCP_NV_A100_8_40G", "GCP", 92, 654, 8),
    // Images for linux/amd64 do not run on these; their sizes play no part.
    family_of("GEN_ARM_G1_2", "AWS", 0, 0, 0),
    family_of("GEN_ARM_G1_4", "AWS", 0, 0, 0),
    family_of("GEN_ARM_G1_8", "AWS", 0, 0, 0),
    family_of("GEN_ARM_G1_32", "AWS", 0, 0, 0),
];

impl Family {
    /// Whether it runs images for arm64.
    pub(crate) fn is_arm(&self) -> bool {
        self.name.starts_with("GEN_ARM_")
    }

    /// The one cloud that has it, if it is one.
    pub(super) fn only_cloud(&self) -> Option<&'static str> {
        ["AWS", "Azure", "GCP"].into_iter().find(|cloud| self.cloud == *cloud)
    }
}

/// The family of this name, in any case of letters.
///
/// # Errors
/// There is none; the sentence names those that there are.
pub(crate) fn family(name: &str) -> Result<&'static Family, String> {
    FAMILIES.iter().find(|family| family.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        format!("`{name}` is no instance family whose size is known here; these are: {}", names.join(", "))
    })
}

//! What this process takes of the machine's memory, as the Linux kernel counts it.

/// Bytes that are resident now; `None` where the kernel does not say.
#[must_use]
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// Most bytes that were ever resident.
#[must_use]
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

fn status(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1_024)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_takes_memory() {
        let (now, peak) = (super::resident().unwrap(), super::peak().unwrap());
        assert!(now > 1 << 20 && peak >= now, "{now} of {peak} bytes");
    }
}

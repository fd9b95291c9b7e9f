//! Amounts as specifications write them.

const MIB: f64 = 1024.0 * 1024.0;

/// Bytes of a memory amount: a number with M, Mi, G or Gi, and no other unit.
pub(super) fn memory(text: &str) -> Option<f64> {
    let units = [("Mi", MIB), ("Gi", 1024.0 * MIB), ("M", 1e6), ("G", 1e9)];
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    positive(number).map(|amount| amount * factor)
}

/// Bytes as GiB.
pub(super) fn gib(bytes: f64) -> f64 {
    bytes / (1024.0 * MIB)
}

/// CPUs: a number, or thousandths with `m`.
pub(super) fn cpus(text: &str) -> Option<f64> {
    match text.strip_suffix('m') {
        Some(thousandths) => positive(thousandths).map(|amount| amount / 1000.0),
        None => positive(text),
    }
}

/// Whole GiB with the unit Gi.
pub(super) fn whole_gib(text: &str) -> Option<i64> {
    text.strip_suffix("Gi")?.parse().ok().filter(|amount| *amount > 0)
}

/// Whether text is numbers, each with one of these units, such as `1h30m`.
pub(super) fn is_duration(text: &str, units: &[char]) -> bool {
    let mut digits = 0;
    for c in text.chars() {
        match c {
            '0'..='9' => digits += 1,
            unit if digits > 0 && units.contains(&unit) => digits = 0,
            _ => return false,
        }
    }
    digits == 0 && !text.is_empty()
}

fn positive(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|amount: &f64| plain && amount.is_finite() && *amount >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_one_of_four_units() {
        assert_eq!(memory("0.5Gi"), Some(512.0 * MIB));
        assert_eq!(memory("512Mi"), Some(512.0 * MIB));
        assert_eq!(memory("2G"), Some(2e9));
        for bad in ["512", "512K", "512Ki", "1Ti", "-1Gi", "Gi", "1e3Mi", "infGi"] {
            assert_eq!(memory(bad), None, "{bad}");
        }
    }

    #[test]
    fn cpus_are_numbers_or_thousandths() {
        assert_eq!(cpus("500m"), Some(0.5));
        assert_eq!(cpus("2"), Some(2.0));
        assert_eq!(cpus("two"), None);
    }

    #[test]
    fn durations_need_a_number_before_each_unit() {
        assert!(is_duration("1h30m", &['h', 'm', 's']) && is_duration("90s", &['h', 'm', 's']));
        for bad in ["", "90", "h", "1d", "1h30"] {
            assert!(!is_duration(bad, &['h', 'm', 's']), "{bad}");
        }
    }
}

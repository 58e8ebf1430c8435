//! Reads stolen time, and takes medians.

/// Processor time of the whole machine so far, and what of it the hypervisor gave to others, in clock ticks.
/// `None` where the system does not tell.
pub fn stolen() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|t| t.parse().ok()).collect();
    Some((ticks.iter().take(8).sum(), *ticks.get(7)?))
}

/// The share of the machine's time that was stolen since an earlier reading.
pub fn stolen_share(since: Option<(u64, u64)>) -> Option<f64> {
    let ((total, stolen), (total_before, stolen_before)) = (stolen()?, since?);
    Some((stolen - stolen_before) as f64 / (total - total_before).max(1) as f64)
}

/// The size of the largest cache of the first processor, in bytes. `None` where the system does not tell.
pub fn last_cache_bytes() -> Option<usize> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = caches.filter_map(|cache| std::fs::read_to_string(cache.ok()?.path().join("size")).ok());
    let kibibytes = sizes.filter_map(|size| size.trim().strip_suffix('K')?.parse::<usize>().ok());
    Some(kibibytes.max()? << 10)
}

/// The middle value; of an even number, the mean of the two in the middle.
///
/// # Panics
/// If there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// How much a figure spread, in words.
pub fn spread(values: &[f64]) -> String {
    let (min, max) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
    format!("{:.3} ({min:.3} to {max:.3})", median(values))
}

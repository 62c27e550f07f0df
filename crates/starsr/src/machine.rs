// SPDX-License-Identifier: MPL-2.0

//! The machine that this process runs on.

/// Bytes of memory that this process may use: the machine's, or its control group's where that is
/// less; `None` where the system reports neither.
pub fn memory_of_this_machine() -> Option<u64> {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    [memory_in_total(), limit].into_iter().flatten().min()
}

fn memory_in_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let of =
        |line: &str| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok();
    text.lines().find_map(of).and_then(|kibibytes: u64| kibibytes.checked_mul(1024))
}
